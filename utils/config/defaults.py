"""Every key of the configuration with its default; utils/config/limits.py says what it may be."""

from typing import Any

_ENCODER = dict(PATCH_SIZE=4, IN_CHANS=3, EMBED_DIM=96, DEPTHS=[2, 2, 6, 2])
_ENCODER |= dict(NUM_HEADS=[3, 6, 12, 24], WINDOW_SIZE=7, MLP_RATIO=4.0, QKV_BIAS=True)
_ENCODER |= dict(APE=False, PATCH_NORM=True)

DEFAULTS: dict[str, Any] = dict(
    DATA=dict(
        BATCH_SIZE=128,  # images per process and micro-batch
        DATA_PATH="",
        DATASET="imagenet",
        IMG_SIZE=224,  # or [height, width]
        MEAN=[0.485, 0.456, 0.406],  # for values from 0 to 1, of each channel or one for all
        STD=[0.229, 0.224, 0.225],
        DECODER="fast",  # of pre-training's JPEG files; pil: PIL and its resizing, bit for bit
        INTERPOLATION="bicubic",  # fine-tuning and evaluation; pre-training crops are bilinear
        PIN_MEMORY=True,
        NUM_WORKERS=8,
        MASK="random",
        MASK_PATCH_SIZE=32,
        MASK_RATIO=0.6,
        NUM_SHAPES=10000,  # images in one epoch of the `shapes` data set
        NUM_VAL_SHAPES=1000,
        MAX_BROKEN=0.01,  # share of training pictures that may be unreadable before a run stops
        VAL_LABELS="",  # a list of labels, where val/ has no class folders
        IMAGES_PER_CLASS=0,  # fine-tune on the first so many of every class; 0: on all
    ),
    MODEL=dict(
        TYPE="swin",
        NAME="swin_tiny_patch4_window7_224",
        RESUME="",
        NUM_CLASSES=1000,
        DROP_RATE=0.0,
        DROP_PATH_RATE=0.1,
        LABEL_SMOOTHING=0.1,
        SWIN=_ENCODER | dict(QK_SCALE=None),
        SWINV2=_ENCODER
        | dict(
            PRETRAINED_WINDOW_SIZES=[0, 0, 0, 0],  # of the weights to start from; 0: WINDOW_SIZE
            EXTRA_NORM_EVERY=0,  # a norm on the main branch after so many blocks; 0: none
        ),
        VIT=dict(
            PATCH_SIZE=16,
            IN_CHANS=3,
            EMBED_DIM=768,
            DEPTH=12,
            NUM_HEADS=12,
            MLP_RATIO=4.0,
            QKV_BIAS=True,
            INIT_VALUES=0.1,
            USE_APE=False,
            USE_RPB=False,
            USE_SHARED_RPB=True,
            USE_MEAN_POOLING=False,
        ),
        SIMMIM=dict(
            DECODER="linear",
            TARGET="pixels",
            LOSS="l1",
            NORM_TARGET=dict(ENABLE=False, PATCH_SIZE=47),  # ENABLE: TARGET normalized_pixels
        ),
    ),
    TRAIN=dict(
        START_EPOCH=0,
        EPOCHS=300,
        WARMUP_EPOCHS=20,
        WEIGHT_DECAY=0.05,
        BASE_LR=5e-4,  # all three learning rates are for 512 images per update
        WARMUP_LR=5e-7,
        MIN_LR=5e-6,
        CLIP_GRAD=5.0,  # 0: no clipping
        LOST_AFTER=600.0,  # seconds without progress, or alone without data, before a run stops
        MAX_SKIPPED=10,  # updates in a row without finite loss and gradient before a run stops
        AUTO_RESUME=True,
        ACCUMULATION_STEPS=0,  # micro-batches per update; 0 is 1
        USE_CHECKPOINT=False,
        SHARDING="none",  # full: weights, gradients and optimizer divided over the processes
        COMPILE="none",  # torch.compile: none, blocks (starts sooner) or model (runs faster)
        LAYER_DECAY=1.0,
        EMA_DECAY=0.0,  # of the average of a classifier's weights; 0: no average
        PRECISION="auto",
        LR_SCHEDULER=dict(
            NAME="cosine",
            DECAY_EPOCHS=30,
            DECAY_RATE=0.1,
            GAMMA=0.1,
            MULTISTEPS=[],
            WARMUP_PREFIX=False,
        ),
        OPTIMIZER=dict(
            NAME="adamw",
            EPS=1e-8,
            BETAS=(0.9, 0.999),
            MOMENTUM=0.9,
            NO_WEIGHT_DECAY="published",
        ),
    ),
    AUG=dict(
        CROP_SCALE=[0.08, 1.0],  # share of a training picture's area
        COLOR_JITTER=0.4,
        AUTO_AUGMENT="rand-m9-mstd0.5-inc1",
        REPROB=0.25,
        REMODE="pixel",
        RECOUNT=1,
        MIXUP=0.8,
        CUTMIX=1.0,
        CUTMIX_MINMAX=None,
        MIXUP_PROB=1.0,
        MIXUP_SWITCH_PROB=0.5,
        MIXUP_MODE="batch",
    ),
    # Evaluation in float32 gives the same accuracy for any batch size; `auto` may be faster.
    TEST=dict(CROP=True, PRECISION="float32"),
    DEVICE="auto",
    OUTPUT="",  # '' is ./output
    TAG="default",
    SAVE_FREQ=1,  # epochs from one checkpoint to the next
    SAVE_UPDATES=0,  # the same inside an epoch, in updates of the run; 0: none
    SAVE_MINUTES=10.0,  # and in minutes; 0: none
    KEEP_LAST=0,  # checkpoints at ends of epochs that are kept; 0: all
    KEEP_EVERY=0,  # epochs whose checkpoints are kept nevertheless: every so many, from the first
    EVAL_FREQ=1,  # epochs from one validation to the next
    PICTURE_FREQ=5,
    PRINT_FREQ=10,
    SEED=0,
    EVAL_MODE=False,
    THROUGHPUT_MODE=False,
    PRETRAINED="",
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
