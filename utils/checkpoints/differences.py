"""Differences between what a checkpoint was made with and what a run has now, for its log."""

from collections.abc import Iterable, Iterator, Mapping

from yacs.config import CfgNode

from utils.checkpoints.reading import Content
from utils.checkpoints.state import Data, TrainState
from utils.config import keys_below
from utils.config.defaults import DEFAULTS
from utils.messages import shown

# Keys that change nothing that a run learns. Every other key does, so that a new one is not missed.
_WITHOUT_EFFECT = {
    # names, places and reports
    *("MODEL.NAME", "MODEL.RESUME", "PRETRAINED", "OUTPUT", "TAG", "DEVICE", "PRINT_FREQ"),
    *("SAVE_FREQ", "SAVE_UPDATES", "SAVE_MINUTES", "KEEP_LAST", "KEEP_EVERY", "PICTURE_FREQ"),
    *("EVAL_FREQ", "EVAL_MODE", "THROUGHPUT_MODE", "MODEL.NUM_CLASSES", "DATA.VAL_LABELS"),
    *("DATA.NUM_VAL_SHAPES", "TRAIN.AUTO_RESUME", "TRAIN.START_EPOCH"),
    # when a run gives up
    *("DATA.MAX_BROKEN", "TRAIN.MAX_SKIPPED", "TRAIN.LOST_AFTER"),
    # how the same is computed: other machines may need other ones; rounding differs
    *("DATA.PIN_MEMORY", "DATA.NUM_WORKERS", "TRAIN.USE_CHECKPOINT", "TRAIN.SHARDING"),
    *("TRAIN.COMPILE", "TRAIN.PRECISION", "TEST.PRECISION", "TRAIN.TF32"),
    *("TRAIN.DETERMINISTIC", "MODEL.SIMMIM.MAX_PREDICTION"),
    # what a line of its own compares: the pictures, the images of an update, the seed
    *("DATA.DATA_PATH", "DATA.DATASET", "DATA.NUM_SHAPES", "DATA.IMAGES_PER_CLASS"),
    *("DATA.BATCH_SIZE", "TRAIN.ACCUMULATION_STEPS", "SEED"),
}
# Beginnings of keys that only one of the stages reads.
_OF_PRETRAINING = ("MODEL.SIMMIM.", "DATA.MASK", "DATA.BLOCK.", "DATA.DECODER")
_OF_TARGETS = ("COLOR_BINS", "COLOR_CLUSTERS", "TOKENS")  # sections that only one target reads
_OF_FINETUNING = ("AUG.", "TEST.", "DATA.INTERPOLATION", "MODEL.LABEL_SMOOTHING", "TRAIN.EMA_DECAY")
# A key is of the first kind that has its beginning.
_SCHEDULE = "schedule"
_KINDS = {
    "TRAIN.EPOCHS": _SCHEDULE,
    "TRAIN.WARMUP": _SCHEDULE,
    "TRAIN.BASE_LR": _SCHEDULE,
    "TRAIN.MIN_LR": _SCHEDULE,
    "TRAIN.LR_SCHEDULER.": _SCHEDULE,
    "TRAIN.LAYER_DECAY": _SCHEDULE,
    "TRAIN.": "optimizer",
    "DATA.MASK": "mask",
    "DATA.BLOCK.": "mask",
    "MODEL.SIMMIM.": "target or loss",
    "MODEL.LABEL_SMOOTHING": "target or loss",
    "MODEL.": "model",
    "AUG.": "augmentation",
    "DATA.": "preparation of pictures",
    "TEST.": "preparation of pictures",
    "": "setting",  # of code that adds keys
}
# One number stands for one for each channel or side.
_ONE_FOR_ALL = ("DATA.MEAN", "DATA.STD", "DATA.IMG_SIZE")

NORMALIZATION = ("DATA.MEAN", "DATA.STD")
# What reaches a model that reconstructs pictures, and one that is evaluated.
PRETRAIN_INPUT = (*NORMALIZATION, "DATA.IMG_SIZE", "DATA.EXIF_ORIENTATION")
EVAL_INPUT = (*PRETRAIN_INPUT, "DATA.INTERPOLATION", "TEST.CROP")


def changed_values(stored: object, cfg: CfgNode, keys: Iterable[str]) -> str:
    """Old and new values of the keys that differ from a checkpoint's, as "KEY 1 -> 2, ...".

    `stored` is the configuration in the checkpoint; a key that it lacks counts as its default.
    Empty where none differs, or it is no configuration of this project.
    """
    if not isinstance(stored, Mapping) or not isinstance(stored.get("DATA"), Mapping):
        return ""
    pairs = {key: (_value(stored, key), _value(cfg, key)) for key in keys}
    return ", ".join(
        f"{key} {shown(old)} -> {shown(new)}"
        for key, (old, new) in pairs.items()
        if _compared(key, old) != _compared(key, new)
    )


def changed_settings(content: Content, state: TrainState, cfg: CfgNode) -> list[str]:
    """One line for each kind of settings that differ from those of a checkpoint.

    `state` was restored from it.
    """
    kinds: dict[str, list[str]] = {}
    for key in keys_with_effect(cfg, finetuning=state.best is not None):
        kind = next(kind for beginning, kind in _KINDS.items() if key.startswith(beginning))
        kinds.setdefault(kind, []).append(key)
    notes = {kind: changed_values(content.get("config"), cfg, keys) for kind, keys in kinds.items()}
    if notes.get(_SCHEDULE) and state.position.epoch < cfg.TRAIN.EPOCHS:
        rate = max(state.scheduler.rates(state.position.place_in_schedule))
        before = content["lr_scheduler"].get("lr")
        was = "" if before is None else f"was {before:.3g} in the last update and "
        notes[_SCHEDULE] += f"; the learning rate {was}is {rate:.3g} in the next one"
    return [f"another {kind} than the checkpoint's: {note}" for kind, note in notes.items() if note]


def changed_data(content: Content, data: Data | None) -> str:
    """Words for pictures that differ from those of a checkpoint; empty where either is unknown."""
    stored = content.get("data")
    if stored is None or data is None:
        return ""
    images, digest = stored["images"], stored["digest"]
    if images != data.images:
        return f"the data are {data.images} pictures, the checkpoint's {images}"
    if digest != data.digest:
        return (
            f"the data are {images} pictures as before, but not the same in the same order "
            f"(digest {shown(data.digest)}, the checkpoint's {shown(digest)})"
        )
    return ""


def keys_with_effect(cfg: CfgNode, finetuning: bool) -> Iterator[str]:
    """Keys that change what a run of this stage learns, of the parts that it uses."""
    unused = _OF_PRETRAINING if finetuning else _OF_FINETUNING
    unread = {*_OF_TARGETS} - {cfg.MODEL.SIMMIM.TARGET.upper()}
    used_sections = {"MODEL": ("SIMMIM", cfg.MODEL.TYPE.upper()), "DATA": (cfg.DATA.MASK.upper(),)}
    for key in keys_below(cfg):
        section, *parts = key.split(".")
        # the section of another encoder, mask or target
        other = len(parts) > 1 and parts[0] not in used_sections.get(section, parts)
        other |= not unread.isdisjoint(parts[:-1])
        if not (key in _WITHOUT_EFFECT or other or key.startswith(unused)):
            yield key


def _value(values: object, key: str) -> object:
    """The value of a key in nested sections, else its default, else None."""
    *sections, name = key.split(".")
    for found in (values, DEFAULTS):
        for section in sections:
            found = found.get(section) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and name in found:
            return found[name]
    return None


def _compared(key: str, value: object) -> list[object]:
    """The value in the form in which equal settings are equal; files may hold anything."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    plain: list[object] = [
        item if isinstance(item, bool | int | float | str | None) else shown(item) for item in items
    ]
    return plain[:1] if key in _ONE_FOR_ALL and plain == plain[:1] * len(plain) else plain
