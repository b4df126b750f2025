"""The configuration: every key with its default, YAML files with BASE, options; then frozen.

Precedence: defaults < BASE files < file < flags < --opts.
"""

import ast
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from utils.checks import choose

_ENCODER = dict(PATCH_SIZE=4, IN_CHANS=3, EMBED_DIM=96, DEPTHS=[2, 2, 6, 2])
_ENCODER |= dict(NUM_HEADS=[3, 6, 12, 24], WINDOW_SIZE=7, MLP_RATIO=4.0, QKV_BIAS=True)
_ENCODER |= dict(APE=False, PATCH_NORM=True)

DEFAULTS: dict[str, Any] = dict(
    DATA=dict(
        BATCH_SIZE=128,  # images per process and micro-batch
        DATA_PATH="",
        DATASET="imagenet",
        IMG_SIZE=224,
        INTERPOLATION="bicubic",  # fine-tuning and evaluation; pre-training crops are bilinear
        PIN_MEMORY=True,
        NUM_WORKERS=8,
        MASK="random",
        MASK_PATCH_SIZE=32,
        MASK_RATIO=0.6,
        NUM_SHAPES=10000,  # images in one epoch of the `shapes` data set
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
        SWINV2=_ENCODER | dict(PRETRAINED_WINDOW_SIZES=[0, 0, 0, 0]),
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
        AUTO_RESUME=True,
        ACCUMULATION_STEPS=0,  # micro-batches per update; 0 is 1
        USE_CHECKPOINT=False,
        LAYER_DECAY=1.0,
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
    TEST=dict(CROP=True),
    DEVICE="auto",
    OUTPUT="",  # '' is ./output
    TAG="default",
    SAVE_FREQ=1,
    PICTURE_FREQ=5,
    PRINT_FREQ=10,
    SEED=0,
    EVAL_MODE=False,
    THROUGHPUT_MODE=False,
    PRETRAINED="",
)

_OPTIONAL = {"MODEL.SWIN.QK_SCALE": 0.0, "MODEL.VIT.INIT_VALUES": 0.0, "AUG.CUTMIX_MINMAX": [0.0]}
_FLOAT_LISTS = ("TRAIN.OPTIMIZER.BETAS", "AUG.CUTMIX_MINMAX")
_CHOICES = {
    "DATA.INTERPOLATION": ("bicubic", "bilinear", "nearest"),
    "TRAIN.PRECISION": ("auto", "bfloat16", "float16", "float32"),
    "DEVICE": ("auto", "cpu", "cuda"),
}
_POSITIVE = (1, math.inf)
_NOT_NEGATIVE = (0, math.inf)
_SHARE = (0, 1)
_RANGES: dict[str, tuple[float, float]] = {
    "DATA.BATCH_SIZE": _POSITIVE,
    "DATA.IMG_SIZE": _POSITIVE,
    "DATA.NUM_WORKERS": _NOT_NEGATIVE,
    "DATA.MASK_PATCH_SIZE": _POSITIVE,
    "DATA.MASK_RATIO": _SHARE,
    "DATA.NUM_SHAPES": _POSITIVE,
    "MODEL.NUM_CLASSES": _NOT_NEGATIVE,
    "MODEL.DROP_RATE": _SHARE,
    "MODEL.DROP_PATH_RATE": _SHARE,
    "MODEL.LABEL_SMOOTHING": _SHARE,
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
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": _POSITIVE,
    "SAVE_FREQ": _POSITIVE,
    "PICTURE_FREQ": _NOT_NEGATIVE,
    "PRINT_FREQ": _POSITIVE,
    "SEED": (0, 2**32 - 1),
}


def get_config(cfg_file: str | Path | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """Build the frozen configuration from a YAML file and a flat KEY, VALUE list.

    Raises ValueError for unknown keys, wrong types, values out of range and unreadable files.
    """
    cfg = CfgNode(DEFAULTS)
    if cfg_file is not None:
        _merge_file(cfg, Path(cfg_file), ())
    _merge_options(cfg, opts)
    _check_values(cfg)
    cfg.freeze()
    return cfg


def to_plain(cfg: CfgNode) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, for checkpoints and YAML files."""
    return {
        key: to_plain(value)
        if isinstance(value, CfgNode)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in cfg.items()
    }


def _merge_file(cfg: CfgNode, path: Path, including: tuple[Path, ...]) -> None:
    """Merge the files that BASE names (relative to this file), then the file itself."""
    resolved = path.resolve()
    if resolved in including:
        chain = " -> ".join(file.name for file in (*including, resolved))
        raise ValueError(f"{path}: BASE includes itself: {chain}")
    values = _read_yaml(path)
    bases = values.pop("BASE", None) or []
    for base in [bases] if isinstance(bases, str) else bases:
        if base:
            _merge_file(cfg, path.parent / str(base), (*including, resolved))
    _merge(cfg, values, "", str(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"config file {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"config file {path} is not valid YAML: {reason}") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"config file {path} holds {type(values).__name__}, expected KEY: value")
    return values or {}


def _merge(node: CfgNode, values: Mapping[Any, Any], prefix: str, source: str) -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in node:
            guess = difflib.get_close_matches(str(name), node, n=1)
            hint = f"did you mean {prefix}{guess[0]}? " if guess else ""
            raise ValueError(f"{source}: unknown key {key}; {hint}choices: {', '.join(node)}")
        if not isinstance(node[name], CfgNode):
            node[name] = _convert(value, key, source)
        elif isinstance(value, Mapping):
            _merge(node[name], value, f"{key}.", source)
        else:
            choices = ", ".join(node[name])
            raise ValueError(f"{source}: {key} is {value!r}, expected a section with {choices}")


def _merge_options(cfg: CfgNode, opts: Sequence[Any]) -> None:
    if len(opts) % 2:
        raise ValueError(f"options come as KEY VALUE pairs; {opts[-1]!r} has no value")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        nested: Any = value
        for name in reversed(str(key).split(".")):
            nested = {name: nested}
        _merge(cfg, nested, "", "options")


def _convert(value: Any, key: str, source: str) -> Any:
    """Give `value` the type of the key's default; text is read as a Python literal."""
    default = _OPTIONAL.get(key, _default_of(key))
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = math.inf if value in ("inf", ".inf") else value
    if value is None and key in _OPTIONAL:
        return None
    converted = _as_type_of(default, value, key)
    if converted is None:
        kind = "list" if isinstance(default, list | tuple) else type(default).__name__
        raise ValueError(f"{source}: {key} is {value!r}, expected {kind} (default: {default!r})")
    return converted


def _default_of(key: str) -> Any:
    value: Any = DEFAULTS
    for name in key.split("."):
        value = value[name]
    return value


def _as_type_of(default: Any, value: Any, key: str) -> Any:
    """`value` in the type of `default`, or None where it cannot have that type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, list | tuple):
        kinds = int | float if key in _FLOAT_LISTS else int
        fits = isinstance(value, list | tuple) and all(
            isinstance(item, kinds) and not isinstance(item, bool) for item in value
        )
        return type(default)(value) if fits else None
    if isinstance(default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(default, float):
        return float(value) if number and not math.isnan(value) else None
    if isinstance(default, int):
        return value if number and isinstance(value, int) else None
    return str(value) if isinstance(value, str) or number else None


def _check_values(cfg: CfgNode) -> None:
    for key, choices in _CHOICES.items():
        choose(dict.fromkeys(choices), _get(cfg, key), key)
    for key, (low, high) in _RANGES.items():
        value = _get(cfg, key)
        if not low <= value <= high:
            limit = f"from {low} to {high}" if math.isfinite(high) else f"at least {low}"
            raise ValueError(f"{key} is {value}, expected {limit}")
    if cfg.TRAIN.WARMUP_EPOCHS > cfg.TRAIN.EPOCHS:
        raise ValueError(
            f"TRAIN.WARMUP_EPOCHS is {cfg.TRAIN.WARMUP_EPOCHS}, more than "
            f"TRAIN.EPOCHS = {cfg.TRAIN.EPOCHS}"
        )


def _get(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    return value
