"""Every key of the configuration with its default; utils/config/limits.py says what it may be."""

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
    QKV_BIAS=True,  # biases of queries and values, in Swin V1 of keys, too
    APE=False,  # add an absolute position embedding to the patches
    PATCH_NORM=True,  # a layer norm after the patch embedding
)

DEFAULTS: dict[str, Any] = dict(
    DATA=dict(
        BATCH_SIZE=128,  # images per process and micro-batch
        DATA_PATH="",  # the data set's folder (--data-path)
        DATASET="imagenet",  # how the data is read (data.md)
        IMG_SIZE=224,  # side of an image in pixels, or [height, width]
        MEAN=[0.485, 0.456, 0.406],  # of values from 0 to 1; one for each channel, or one for all
        STD=[0.229, 0.224, 0.225],  # likewise
        DECODER="fast",  # of pre-training's JPEG files; pil: PIL and its resizing, bit for bit
        INTERPOLATION="bicubic",  # fine-tuning and evaluation; pre-training crops are bilinear
        PIN_MEMORY=True,  # load batches into memory that GPUs read directly
        NUM_WORKERS=8,  # loader processes of each process; a recipe's number is at most its cores
        MASK="random",  # how hidden cells are chosen
        MASK_PATCH_SIZE=32,  # side of a cell that is hidden or visible as a whole, in pixels
        MASK_RATIO=0.6,  # share of cells that are hidden, rounded up
        NUM_SHAPES=10000,  # images in one epoch of the `shapes` data set
        NUM_VAL_SHAPES=1000,  # the same of its validation part
        MAX_BROKEN=0.01,  # share of training pictures that may be unreadable before a run stops
        VAL_LABELS="",  # a list of labels, where val/ has no class folders
        IMAGES_PER_CLASS=0,  # fine-tune on the first so many of every class; 0: on all
    ),
    MODEL=dict(
        TYPE="swin",  # the encoder, whose section gives its sizes
        NAME="swin_tiny_patch4_window7_224",  # middle part of the run's folder, and its stage
        RESUME="",  # checkpoint to go on from, or to evaluate (--resume)
        NUM_CLASSES=1000,  # classes of --throughput; elsewhere the data or the file tells
        DROP_RATE=0.0,  # dropout after the patch embedding and inside the blocks
        DROP_PATH_RATE=0.1,  # share of samples for which the last block is left out; linear from 0
        LABEL_SMOOTHING=0.1,  # of cross entropy
        SWIN=_SWIN
        | dict(
            QK_SCALE=None,  # factor of the attention's scores; None: 1 / sqrt(width of a head)
        ),
        SWINV2=_SWIN
        | dict(
            PRETRAINED_WINDOW_SIZES=[0, 0, 0, 0],  # of the weights to start from; 0: WINDOW_SIZE
            EXTRA_NORM_EVERY=0,  # a norm on the main branch after so many blocks; 0: none
        ),
        VIT=dict(
            PATCH_SIZE=16,  # side of a patch, in pixels
            IN_CHANS=3,  # channels of an image
            EMBED_DIM=768,  # width
            DEPTH=12,  # blocks
            NUM_HEADS=12,  # heads of attention
            MLP_RATIO=4.0,  # width of the hidden layer of an MLP, relative to the block's
            QKV_BIAS=True,  # biases of queries and values
            INIT_VALUES=0.1,  # layer scale at the start; None: no layer scale
            USE_APE=False,  # add an absolute position embedding to the tokens
            USE_RPB=False,  # a relative position bias of each block's own
            USE_SHARED_RPB=True,  # one relative position bias for all blocks
            USE_MEAN_POOLING=False,  # classify the mean of the tokens, not the class token
        ),
        SIMMIM=dict(
            DECODER="linear",  # head of pre-training
            TARGET="pixels",  # what it predicts
            LOSS="l1",  # how it is measured
            NORM_TARGET=dict(
                ENABLE=False,  # pixels normalized by their surroundings; TARGET normalized_pixels
                PATCH_SIZE=47,  # side of the surroundings, in pixels
            ),
        ),
    ),
    TRAIN=dict(
        START_EPOCH=0,  # epoch from which a run without checkpoint counts
        EPOCHS=300,  # length of training
        WARMUP_EPOCHS=20,  # epochs in which the learning rate rises linearly
        WEIGHT_DECAY=0.05,  # of the parameters that decay
        BASE_LR=5e-4,  # learning rate; this and the next two are for 512 images per update
        WARMUP_LR=5e-7,  # learning rate at the start of the warm-up
        MIN_LR=5e-6,  # learning rate at the end of a cosine
        CLIP_GRAD=5.0,  # largest norm of an update's gradient; 0: no clipping
        LOST_AFTER=600.0,  # seconds without progress, or alone without data, before a run stops
        MAX_SKIPPED=10,  # updates in a row without finite loss and gradient before a run stops
        AUTO_RESUME=True,  # go on from the newest checkpoint of the run's folder
        ACCUMULATION_STEPS=0,  # micro-batches per update; 0 is 1
        USE_CHECKPOINT=False,  # compute activations again in the backward pass, to save memory
        SHARDING="none",  # full: weights, gradients and optimizer divided over the processes
        COMPILE="none",  # torch.compile: none, blocks (starts sooner) or model (runs faster)
        LAYER_DECAY=1.0,  # factor of the learning rate from layer to layer, towards the stem
        EMA_DECAY=0.0,  # of the average of a classifier's weights; 0: no average
        PRECISION="auto",  # auto: bfloat16 where it is fast, else float16 on GPUs, float32 on CPUs
        LR_SCHEDULER=dict(
            NAME="cosine",  # schedule: cosine, linear, step or multistep
            DECAY_EPOCHS=30,  # epochs between two steps of the schedule `step`
            DECAY_RATE=0.1,  # factor of such a step
            GAMMA=0.1,  # factor at each of MULTISTEPS
            MULTISTEPS=[],  # epochs at which the schedule `multistep` goes down
            WARMUP_PREFIX=False,  # the cosine spans the epochs after the warm-up, not all
        ),
        OPTIMIZER=dict(
            NAME="adamw",  # adamw or sgd
            EPS=1e-8,  # of AdamW
            BETAS=(0.9, 0.999),  # of AdamW
            MOMENTUM=0.9,  # of SGD
            NO_WEIGHT_DECAY="published",  # published or intended: which parameters do not decay
        ),
    ),
    AUG=dict(
        CROP_SCALE=[0.08, 1.0],  # share of a training picture's area
        COLOR_JITTER=0.4,  # strength, where AUTO_AUGMENT is none
        AUTO_AUGMENT="rand-m9-mstd0.5-inc1",  # timm's name of a policy, or none
        REPROB=0.25,  # probability of random erasing
        REMODE="pixel",  # what erased pixels become
        RECOUNT=1,  # erased boxes of an image
        MIXUP=0.8,  # alpha of Mixup; 0: none
        CUTMIX=1.0,  # alpha of CutMix; 0: none
        CUTMIX_MINMAX=None,  # share of a side that CutMix replaces, from and to; None: drawn
        MIXUP_PROB=1.0,  # share of batches that are mixed
        MIXUP_SWITCH_PROB=0.5,  # share of those that CutMix gets where both are on
        MIXUP_MODE="batch",  # how pairs share a mixture
    ),
    TEST=dict(
        CROP=True,  # crop the centre of a resized picture; False: resize to the square
        PRECISION="float32",  # the same accuracy for any batch size; auto may be faster
    ),
    DEVICE="auto",  # where to compute
    OUTPUT="",  # first part of the run's folder (--output); '' is ./output
    TAG="default",  # last part of the run's folder; by default the recipe's name
    SAVE_FREQ=1,  # epochs from one checkpoint to the next
    SAVE_UPDATES=0,  # updates of the run from one checkpoint inside an epoch to the next; 0: none
    SAVE_MINUTES=10.0,  # minutes from one checkpoint inside an epoch to the next; 0: none
    KEEP_LAST=0,  # checkpoints at ends of epochs that are kept; 0: all
    KEEP_EVERY=0,  # epochs whose checkpoints are kept nevertheless: every so many, from the first
    EVAL_FREQ=1,  # epochs from one validation to the next
    PICTURE_FREQ=5,  # epochs from one drawing to the next; 0: none
    PRINT_FREQ=10,  # updates from one line of the log to the next
    SEED=0,  # of everything random
    EVAL_MODE=False,  # evaluate --resume (--eval)
    THROUGHPUT_MODE=False,  # measure speed (--throughput)
    PRETRAINED="",  # file whose encoder fine-tuning starts from (--pretrained)
)

OPTIONAL = {"MODEL.SWIN.QK_SCALE": 0.0, "MODEL.VIT.INIT_VALUES": 0.0, "AUG.CUTMIX_MINMAX": [0.0]}
SIZES = ("DATA.IMG_SIZE",)  # a side, or [height, width]
FLOAT_LISTS = (
    "TRAIN.OPTIMIZER.BETAS",
    "AUG.CUTMIX_MINMAX",
    "AUG.CROP_SCALE",
    "DATA.MEAN",
    "DATA.STD",
)
