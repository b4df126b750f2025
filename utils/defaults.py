"""Every key of the configuration with its default, and what values it may take."""

import math
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
_PRECISIONS = ("auto", "bfloat16", "float16", "float32")
CHOICES = {
    "TRAIN.COMPILE": ("none", "blocks", "model"),
    "DATA.DECODER": ("fast", "pil"),
    "AUG.REMODE": ("const", "rand", "pixel"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "TRAIN.SHARDING": ("none", "full"),
    "TEST.PRECISION": _PRECISIONS,
    "DATA.INTERPOLATION": ("bicubic", "bilinear", "nearest"),
    "TRAIN.PRECISION": _PRECISIONS,
    "DEVICE": ("auto", "cpu", "cuda"),
}
_POSITIVE = (1, math.inf)
_NOT_NEGATIVE = (0, math.inf)
_SHARE = (0, 1)
# More than any machine has room for: a configuration from anybody fails here, not there.
_LAYERS = (1, 10**4)
_WIDTH = (1, 10**5)
_NUMBER = (1, 10**7)
RANGES: dict[str, tuple[float, float]] = {
    "DATA.BATCH_SIZE": _NUMBER,
    "DATA.IMG_SIZE": _WIDTH,
    "DATA.NUM_WORKERS": (0, 1024),
    "DATA.MASK_PATCH_SIZE": _WIDTH,
    "DATA.MASK_RATIO": _SHARE,
    "DATA.NUM_SHAPES": _NUMBER,
    "DATA.NUM_VAL_SHAPES": _NUMBER,
    "DATA.IMAGES_PER_CLASS": _NOT_NEGATIVE,
    "DATA.MAX_BROKEN": _SHARE,
    "AUG.COLOR_JITTER": _NOT_NEGATIVE,
    "AUG.REPROB": _SHARE,
    "AUG.RECOUNT": _LAYERS,
    "AUG.MIXUP": _NOT_NEGATIVE,
    "AUG.CUTMIX": _NOT_NEGATIVE,
    "AUG.MIXUP_PROB": _SHARE,
    "AUG.MIXUP_SWITCH_PROB": _SHARE,
    "MODEL.NUM_CLASSES": (0, 10**7),
    "MODEL.DROP_RATE": _SHARE,
    "MODEL.DROP_PATH_RATE": _SHARE,
    "MODEL.LABEL_SMOOTHING": _SHARE,
    "MODEL.SWIN.PATCH_SIZE": _WIDTH,
    "MODEL.SWIN.DEPTHS": _LAYERS,
    "MODEL.SWINV2.DEPTHS": _LAYERS,
    "MODEL.SWIN.EMBED_DIM": _WIDTH,
    "MODEL.SWIN.WINDOW_SIZE": _POSITIVE,
    "MODEL.SWINV2.PATCH_SIZE": _WIDTH,
    "MODEL.SWINV2.EMBED_DIM": _WIDTH,
    "MODEL.SWINV2.WINDOW_SIZE": _POSITIVE,
    "MODEL.SWINV2.EXTRA_NORM_EVERY": _NOT_NEGATIVE,
    "MODEL.VIT.PATCH_SIZE": _WIDTH,
    "MODEL.VIT.EMBED_DIM": _WIDTH,
    "MODEL.VIT.DEPTH": _LAYERS,
    "TRAIN.START_EPOCH": _NOT_NEGATIVE,
    "TRAIN.EPOCHS": _POSITIVE,
    "TRAIN.WARMUP_EPOCHS": _NOT_NEGATIVE,
    "TRAIN.WEIGHT_DECAY": _NOT_NEGATIVE,
    "TRAIN.BASE_LR": _NOT_NEGATIVE,
    "TRAIN.WARMUP_LR": _NOT_NEGATIVE,
    "TRAIN.MIN_LR": _NOT_NEGATIVE,
    "TRAIN.CLIP_GRAD": _NOT_NEGATIVE,
    "TRAIN.ACCUMULATION_STEPS": _NOT_NEGATIVE,
    "TRAIN.LAYER_DECAY": _SHARE,
    "TRAIN.EMA_DECAY": _SHARE,
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": _POSITIVE,
    "SAVE_FREQ": _POSITIVE,
    "SAVE_UPDATES": _NOT_NEGATIVE,
    "SAVE_MINUTES": _NOT_NEGATIVE,
    "KEEP_LAST": _NOT_NEGATIVE,
    "KEEP_EVERY": _NOT_NEGATIVE,
    "TRAIN.MAX_SKIPPED": _POSITIVE,
    "TRAIN.LOST_AFTER": _POSITIVE,
    "EVAL_FREQ": _POSITIVE,
    "PICTURE_FREQ": _NOT_NEGATIVE,
    "PRINT_FREQ": _POSITIVE,
    "SEED": (0, 2**32 - 1),
}
