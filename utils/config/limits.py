"""Possible values of the configuration's keys: choices, lengths, and a range for every number."""

import math

_PRECISIONS = ("auto", "bfloat16", "float16", "float32")
CHOICES = {
    "MODEL.SIMMIM.SCOPE": ("hidden", "all"),
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
# Keys of files and folders; FOLDER_NAMES are parts of a run's path and must not leave OUTPUT.
TARGET_FILES = ("MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK", "MODEL.SIMMIM.TOKENS.FILE")
PATHS = ("DATA.DATA_PATH", "DATA.VAL_LABELS", "MODEL.RESUME", "PRETRAINED", "OUTPUT", *TARGET_FILES)
FOLDER_NAMES = ("MODEL.NAME", "TAG")
LENGTHS = {
    "TRAIN.OPTIMIZER.BETAS": 2,
    "AUG.CROP_SCALE": 2,
    "AUG.CUTMIX_MINMAX": 2,
    "MODEL.SIMMIM.TOKENS.RANGE": 2,
}
MOST_AUGMENTATIONS = 16  # layers (n) of RandAugment, chains (w) of AugMix and their length (d)

# Upper limits are above what any machine can hold, so that absurd values are reported early.
_LAYERS = (1, 1000)
_CHANNELS = (1, 10**4)
_WIDTH = (1, 10**5)
_NUMBER = (1, 10**7)
_COUNT = (1, 10**12)  # of things that need no memory, such as epochs
_COUNT_OR_NONE = (0, 10**12)
_SHARE = (0, 1)
_FACTOR = (0, 10**6)
_RATE = (0, 1e38)  # within float32
_REAL = (-(10**6), 10**6)
_ENCODER = {
    "PATCH_SIZE": _WIDTH,
    "IN_CHANS": _CHANNELS,
    "EMBED_DIM": _WIDTH,
    "NUM_HEADS": _WIDTH,
    "MLP_RATIO": (0, 100),
}
_SWIN = _ENCODER | {"DEPTHS": _LAYERS, "WINDOW_SIZE": _WIDTH}
_SECTIONS = {
    "MODEL.SWIN": _SWIN | {"QK_SCALE": _REAL},
    "MODEL.SWINV2": _SWIN
    | {"PRETRAINED_WINDOW_SIZES": (0, 10**5), "EXTRA_NORM_EVERY": _COUNT_OR_NONE},
    "MODEL.VIT": _ENCODER | {"DEPTH": _LAYERS, "INIT_VALUES": _REAL},
    "MODEL.RESNET": {"IN_CHANS": _CHANNELS, "LAYERS": _LAYERS, "WIDTH": (1, 1000)},
    "MODEL.CONVNEXT": {
        "PATCH_SIZE": _WIDTH,
        "IN_CHANS": _CHANNELS,
        "DEPTHS": _LAYERS,
        "DIMS": _WIDTH,
        "INIT_VALUES": _REAL,
    },
}
RANGES: dict[str, tuple[float, float]] = {
    f"{section}.{name}": limits
    for section, keys in _SECTIONS.items()
    for name, limits in keys.items()
} | {
    "DATA.BATCH_SIZE": _NUMBER,
    "DATA.IMG_SIZE": _WIDTH,
    "DATA.MEAN": _REAL,
    "DATA.STD": _REAL,
    "DATA.NUM_WORKERS": (0, 1024),
    "DATA.MAX_PIXELS": (1, 10**11),
    "DATA.MASK_PATCH_SIZE": _WIDTH,
    "DATA.MASK_RATIO": _SHARE,
    "DATA.BLOCK.MIN_CELLS": _NUMBER,
    "DATA.BLOCK.MIN_ASPECT": _SHARE,
    "DATA.NUM_SHAPES": _NUMBER,
    "DATA.NUM_VAL_SHAPES": _NUMBER,
    "DATA.IMAGES_PER_CLASS": _COUNT_OR_NONE,
    "DATA.MAX_BROKEN": _SHARE,
    "AUG.CROP_SCALE": _SHARE,
    "AUG.COLOR_JITTER": (0, 100),
    "AUG.REPROB": _SHARE,
    "AUG.RECOUNT": _LAYERS,
    "AUG.MIXUP": _FACTOR,
    "AUG.CUTMIX": _FACTOR,
    "AUG.CUTMIX_MINMAX": _SHARE,
    "AUG.MIXUP_PROB": _SHARE,
    "AUG.MIXUP_SWITCH_PROB": _SHARE,
    "MODEL.NUM_CLASSES": (0, 10**7),
    "MODEL.DROP_RATE": _SHARE,
    "MODEL.DROP_PATH_RATE": _SHARE,
    "MODEL.LABEL_SMOOTHING": _SHARE,
    "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE": _WIDTH,
    "MODEL.SIMMIM.TARGET_SHRINK": (1, 32),
    "MODEL.SIMMIM.MAX_PREDICTION": (0, 10**6),
    "MODEL.SIMMIM.COLOR_BINS.NUMBER": (2, 256),
    "MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER": (2, 65536),
    "MODEL.SIMMIM.TOKENS.VOCABULARY": (2, 10**7),
    "MODEL.SIMMIM.TOKENS.PATCH_SIZE": _WIDTH,
    "MODEL.SIMMIM.TOKENS.SHRINK": _WIDTH,
    "MODEL.SIMMIM.TOKENS.RANGE": _REAL,
    "TRAIN.START_EPOCH": _COUNT_OR_NONE,
    "TRAIN.EPOCHS": _COUNT,
    "TRAIN.WARMUP_EPOCHS": _COUNT_OR_NONE,
    "TRAIN.WEIGHT_DECAY": _FACTOR,
    "TRAIN.BASE_LR": _RATE,
    "TRAIN.WARMUP_LR": _RATE,
    "TRAIN.MIN_LR": _RATE,
    "TRAIN.CLIP_GRAD": (0, math.inf),
    "TRAIN.ACCUMULATION_STEPS": (0, 10**7),
    "TRAIN.LAYER_DECAY": _SHARE,
    "TRAIN.EMA_DECAY": _SHARE,
    "TRAIN.MAX_SKIPPED": _COUNT,
    "TRAIN.LOST_AFTER": _NUMBER,
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": _COUNT,
    "TRAIN.LR_SCHEDULER.DECAY_RATE": _FACTOR,
    "TRAIN.LR_SCHEDULER.GAMMA": _FACTOR,
    "TRAIN.LR_SCHEDULER.MULTISTEPS": _COUNT_OR_NONE,
    "TRAIN.OPTIMIZER.EPS": _FACTOR,
    "TRAIN.OPTIMIZER.BETAS": (0, 0.99999999),
    "TRAIN.OPTIMIZER.MOMENTUM": _SHARE,
    "SAVE_FREQ": _COUNT,
    "SAVE_UPDATES": _COUNT_OR_NONE,
    "SAVE_MINUTES": (0, math.inf),
    "KEEP_LAST": _COUNT_OR_NONE,
    "KEEP_EVERY": _COUNT_OR_NONE,
    "EVAL_FREQ": _COUNT,
    "PICTURE_FREQ": _COUNT_OR_NONE,
    "PRINT_FREQ": _COUNT,
    "SEED": (0, 2**32 - 1),
}
