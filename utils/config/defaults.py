"""Every key of the configuration with its default; utils/config/limits.py has the limits."""

from typing import Any

# The comment on a key's line is its meaning in docs/configuration.md (python -m tools.keys).
_SWIN = dict(
    PATCH_SIZE=4,  # side of a patch, in pixels
    IN_CHANS=3,  # channels of an image
    EMBED_DIM=96,  # width of the first stage; it doubles from stage to stage
    DEPTHS=[2, 2, 6, 2],  # blocks of each stage
    NUM_HEADS=[3, 6, 12, 24],  # heads of attention in each stage
    WINDOW_SIZE=7,  # side of a window, in tokens
    MLP_RATIO=4.0,  # width of the hidden layer of an MLP, relative to the block's
    QKV_BIAS=True,  # add biases to queries and values, in Swin V1 also to keys
    APE=False,  # add an absolute position embedding to the patches
    PATCH_NORM=True,  # a layer norm after the patch embedding
)

DEFAULTS: dict[str, Any] = dict(
    DATA=dict(
        BATCH_SIZE=128,  # images per process and micro-batch
        DATA_PATH="",  # the data set's folder (--data-path)
        DATASET="imagenet",  # how the data is read (data.md)
        IMG_SIZE=224,  # side of an image in pixels, or [height, width]
        MEAN=[0.485, 0.456, 0.406],  # mean of pixels from 0 to 1, per channel or one for all
        STD=[0.229, 0.224, 0.225],  # standard deviation of pixels, per channel or one for all
        MAX_PIXELS=178_956_970,  # pixels of the largest picture that is read; default: PIL's limit
        EXIF_ORIENTATION=False,  # turn pictures as EXIF says; ImageNet's usual loaders do not
        DECODER="fast",  # JPEG decoder of pre-training; pil: decodes and resizes exactly as PIL
        INTERPOLATION="bicubic",  # of fine-tuning and evaluation; pre-training is bilinear
        PIN_MEMORY=True,  # load batches into memory that GPUs read directly
        NUM_WORKERS=8,  # loader workers per process; a recipe's number is limited to its cores
        MASK="random",  # how hidden cells are chosen
        MASK_PATCH_SIZE=32,  # side of a cell that is hidden or visible as a whole, in pixels
        MASK_RATIO=0.6,  # share of cells that are hidden, rounded up (square: as near as it can be)
        BLOCK=dict(
            MIN_CELLS=2,  # smallest block of the mask `block`, in cells; BEiT: 16 patches
            MIN_ASPECT=0.3,  # its smallest height / width, and smallest width / height
        ),
        NUM_SHAPES=10000,  # images in one epoch of the `shapes` data set
        NUM_VAL_SHAPES=1000,  # images in the validation part of the `shapes` data set
        MAX_BROKEN=0.01,  # share of pictures that may be unreadable; of few, 1 in 8 up to 3
        VAL_LABELS="",  # file with a list of labels, where val/ has no class folders
        IMAGES_PER_CLASS=0,  # fine-tune on the first images of each class, this many; 0: on all
    ),
    MODEL=dict(
        TYPE="swin",  # the encoder, whose section gives its sizes
        NAME="swin_tiny_patch4_window7_224",  # second part of the run's folder; tells the stage
        RESUME="",  # checkpoint to resume from, or to evaluate (--resume)
        NUM_CLASSES=1000,  # classes for --throughput; otherwise the data or checkpoint decides
        DROP_RATE=0.0,  # dropout after the patch embedding and inside the blocks; no ConvNet has it
        DROP_PATH_RATE=0.1,  # share of samples that skip the last block; rises linearly from 0
        LABEL_SMOOTHING=0.1,  # label smoothing of the cross entropy
        SWIN=_SWIN
        | dict(
            QK_SCALE=None,  # factor of attention scores; None: 1 / sqrt(width of a head)
        ),
        SWINV2=_SWIN
        | dict(
            PRETRAINED_WINDOW_SIZES=[0, 0, 0, 0],  # in the weights to start from; 0: WINDOW_SIZE
            EXTRA_NORM_EVERY=0,  # blocks of a stage per extra norm on the main branch; 0: none
        ),
        VIT=dict(
            PATCH_SIZE=16,  # side of a patch, in pixels
            IN_CHANS=3,  # channels of an image
            EMBED_DIM=768,  # width
            DEPTH=12,  # blocks
            NUM_HEADS=12,  # heads of attention
            MLP_RATIO=4.0,  # width of the hidden layer of an MLP, relative to the block's
            QKV_BIAS=True,  # add biases to queries and values
            INIT_VALUES=0.1,  # layer scale at the start; None: no layer scale
            USE_APE=False,  # add an absolute position embedding to the tokens
            USE_RPB=False,  # a separate relative position bias for each block
            USE_SHARED_RPB=True,  # one relative position bias for all blocks
            USE_MEAN_POOLING=False,  # classify the mean of the tokens, not the class token
        ),
        RESNET=dict(
            IN_CHANS=3,  # channels of an image
            LAYERS=[3, 4, 6, 3],  # blocks of each stage
            WIDTH=1,  # factor of all widths
            HIDE_PIXELS=True,  # hidden pixels become the mean before the stem, whose cells overlap
        ),
        CONVNEXT=dict(
            PATCH_SIZE=4,  # side of a patch, in pixels
            IN_CHANS=3,  # channels of an image
            DEPTHS=[3, 3, 9, 3],  # blocks of each stage
            DIMS=[96, 192, 384, 768],  # width of each stage
            INIT_VALUES=1e-6,  # layer scale at the start; None: no layer scale
        ),
        SIMMIM=dict(
            DECODER="linear",  # head of pre-training
            TARGET="pixels",  # what the head predicts
            TARGET_SHRINK=1,  # side of the squares whose mean is predicted: 1, 2, 4, 8, 16 or 32
            LOSS="l1",  # loss between prediction and target; cross_entropy is for classes
            SCOPE="hidden",  # pixels that the loss counts: hidden, or all
            MAX_PREDICTION=2.0,  # GiB of the largest prediction of classes for a micro-batch
            NORM_TARGET=dict(
                ENABLE=False,  # normalize pixels by their surroundings: TARGET normalized_pixels
                PATCH_SIZE=47,  # side of the surroundings, in pixels
            ),
            COLOR_BINS=dict(
                NUMBER=8,  # classes of each channel: equal parts of 0 to 1
            ),
            COLOR_CLUSTERS=dict(
                CODEBOOK="",  # file with the centres (python -m tools.color_clusters)
                NUMBER=512,  # of the centres in it
            ),
            TOKENS=dict(
                FILE="",  # image tokenizer, an ONNX file: images (B, C, H, W) -> ids (B, h, w)
                VOCABULARY=8192,  # number of ids
                PATCH_SIZE=16,  # side of a token, in pixels of the image
                SHRINK=2,  # the tokenizer gets the image shrunk by this factor
                RANGE=[0.0, 1.0],  # lowest and highest number of the tokenizer's input
            ),
        ),
    ),
    TRAIN=dict(
        START_EPOCH=0,  # first epoch of a run without a checkpoint
        EPOCHS=300,  # epochs of the whole training
        WARMUP_EPOCHS=20,  # epochs in which the learning rate rises linearly
        WEIGHT_DECAY=0.05,  # weight decay; OPTIMIZER.NO_WEIGHT_DECAY exempts some parameters
        BASE_LR=5e-4,  # learning rate at 512 images per update, like the next two; scaled linearly
        WARMUP_LR=5e-7,  # learning rate at the start of the warm-up
        MIN_LR=5e-6,  # learning rate at the end of a cosine
        CLIP_GRAD=5.0,  # largest norm of an update's gradient; 0: no clipping
        LOST_AFTER=600.0,  # seconds without progress (one process: without data) until a run stops
        MAX_SKIPPED=10,  # updates in a row with non-finite loss or gradient until a run stops
        AUTO_RESUME=True,  # resume from the newest checkpoint in the run's folder
        ACCUMULATION_STEPS=0,  # micro-batches per update; 0 means 1
        USE_CHECKPOINT=False,  # recompute activations in the backward pass, to save memory
        SHARDING="none",  # full: divide weights, gradients and optimizer state over the processes
        COMPILE="none",  # torch.compile: none, blocks (starts sooner) or model (runs faster)
        LAYER_DECAY=1.0,  # learning-rate factor from each layer to the one below, towards the stem
        EMA_DECAY=0.0,  # decay of the moving average of a classifier's weights; 0: no average
        PRECISION="auto",  # auto: bfloat16 where it is fast, else float16 on GPUs, float32 on CPUs
        TF32=False,  # round factors of float32 products on GPUs to 10 bits: faster, less exact
        DETERMINISTIC=False,  # on GPUs, the same bits in every run; slower
        LR_SCHEDULER=dict(
            NAME="cosine",  # schedule: cosine, linear, step or multistep
            DECAY_EPOCHS=30,  # epochs between two steps of the schedule `step`
            DECAY_RATE=0.1,  # learning-rate factor at each step of the schedule `step`
            GAMMA=0.1,  # learning-rate factor at each of MULTISTEPS
            MULTISTEPS=[],  # epochs at which the schedule `multistep` applies GAMMA
            WARMUP_PREFIX=False,  # True: the cosine spans only the epochs after the warm-up
        ),
        OPTIMIZER=dict(
            NAME="adamw",  # adamw or sgd
            EPS=1e-8,  # epsilon of AdamW
            BETAS=(0.9, 0.999),  # decay rates of AdamW's moments
            MOMENTUM=0.9,  # momentum of SGD
            NO_WEIGHT_DECAY="published",  # parameters without weight decay: published or intended
        ),
    ),
    AUG=dict(
        CROP_SCALE=[0.08, 1.0],  # share of a picture's area in a training crop, from and to
        COLOR_JITTER=0.4,  # strength of color jitter, where AUTO_AUGMENT is none
        AUTO_AUGMENT="rand-m9-mstd0.5-inc1",  # timm's name of a policy, or none
        REPROB=0.25,  # probability of random erasing
        REMODE="pixel",  # what erased pixels become
        RECOUNT=1,  # erased boxes per image
        MIXUP=0.8,  # alpha of Mixup; 0: none
        CUTMIX=1.0,  # alpha of CutMix; 0: none
        CUTMIX_MINMAX=None,  # share of a side that CutMix replaces, from and to; None: by CUTMIX
        MIXUP_PROB=1.0,  # share of batches that are mixed
        MIXUP_SWITCH_PROB=0.5,  # share of mixed batches that use CutMix where both are on
        MIXUP_MODE="batch",  # what shares one mixing ratio: the batch, a pair or an image (elem)
    ),
    TEST=dict(
        CROP=True,  # crop the centre of a resized picture; False: resize to the square
        PRECISION="float32",  # float32: the same accuracy at any batch size; auto may be faster
    ),
    DEVICE="auto",  # where to compute; auto: on a GPU if there is one
    OUTPUT="",  # first part of the run's folder (--output); '' is ./output
    TAG="default",  # last part of the run's folder; by default the recipe's name
    SAVE_FREQ=1,  # epochs between two checkpoints
    SAVE_UPDATES=0,  # updates, counted over the run, between checkpoints inside epochs; 0: none
    SAVE_MINUTES=10.0,  # minutes after the latest checkpoint to save inside an epoch; 0: never
    KEEP_LAST=0,  # newest checkpoints at ends of epochs to keep; 0: all
    KEEP_EVERY=0,  # also keep checkpoints of epochs this far apart, from the first; 0: none
    EVAL_FREQ=1,  # epochs between two validations
    PICTURE_FREQ=5,  # epochs between two drawings; 0: none
    PRINT_FREQ=10,  # updates between two lines of the log
    SEED=0,  # seed of all random numbers
    EVAL_MODE=False,  # evaluate the checkpoint of --resume (--eval)
    THROUGHPUT_MODE=False,  # measure the classifier's speed (--throughput)
    PRETRAINED="",  # checkpoint from whose encoder fine-tuning starts (--pretrained)
)

OPTIONAL = {
    "MODEL.SWIN.QK_SCALE": 0.0,
    "MODEL.VIT.INIT_VALUES": 0.0,
    "MODEL.CONVNEXT.INIT_VALUES": 0.0,
    "AUG.CUTMIX_MINMAX": [0.0],
}
SIZES = ("DATA.IMG_SIZE",)  # a side, or [height, width]
FLOAT_LISTS = (
    "TRAIN.OPTIMIZER.BETAS",
    "AUG.CUTMIX_MINMAX",
    "AUG.CROP_SCALE",
    "DATA.MEAN",
    "DATA.STD",
    "MODEL.SIMMIM.TOKENS.RANGE",
)
