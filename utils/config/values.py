"""Convert values to the type of their key's default, and check them against its limits."""

import ast
import contextlib
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from yacs.config import CfgNode

from utils.config.defaults import DEFAULTS, FLOAT_LISTS, OPTIONAL, SIZES
from utils.config.limits import CHOICES, FOLDER_NAMES, LENGTHS, MOST_AUGMENTATIONS, PATHS, RANGES
from utils.messages import choose, shown

_LARGEST_INT = 2**1000  # converts to float without overflow
_LONGEST_NAME = 255  # bytes, of a file system
_LONGEST_PATH = 4096
# Words that YAML reads as a boolean, null or infinity; upper and lower case are equal.
_WORDS: dict[str, object] = dict.fromkeys(("true", "yes", "on"), True)
_WORDS |= dict.fromkeys(("false", "no", "off"), False)
_WORDS |= dict.fromkeys(("none", "null", "~"), None)
_WORDS |= dict.fromkeys(("inf", ".inf", "+inf", "+.inf"), math.inf)
_WORDS |= dict.fromkeys(("-inf", "-.inf"), -math.inf)


def value_of(values: Any, key: str) -> Any:
    """The value under a key such as DATA.BATCH_SIZE in nested sections."""
    for name in key.split("."):
        values = values[name]
    return values


def convert(value: object, key: str, source: str) -> object:
    """Convert `value` to the type of the key's default, or raise ValueError; text is a literal."""
    default = OPTIONAL.get(key, value_of(DEFAULTS, key))
    if isinstance(value, str) and not isinstance(default, str):
        value = _read_literal(value)
    if value is None and key in OPTIONAL:
        return None
    if key in SIZES and isinstance(value, list | tuple) and len(value) == 2:
        default = [default, default]
    converted = _as_type_of(default, value, key)
    if converted is None:
        raise ValueError(
            f"{source}: {key} is {shown(value)}, expected {_kind(default, key)} "
            f"(default: {value_of(DEFAULTS, key)!r})"
        )
    return converted


def _read_literal(text: str) -> object:
    """The value that a text represents, else the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except Exception:  # arbitrary text can raise anything
        return text


def _kind(default: object, key: str) -> str:
    if isinstance(default, bool):
        return "true or false"
    kind = "list of numbers" if isinstance(default, list | tuple) else type(default).__name__
    return kind + (" or [height, width]" if key in SIZES else "")


def _as_type_of(default: object, value: object, key: str) -> object:
    """`value` converted to the type of `default`, or None where that is impossible."""
    if isinstance(default, list | tuple):
        kinds = int | float if key in FLOAT_LISTS else int
        if not isinstance(value, list | tuple):
            return None
        fits = all(isinstance(item, kinds) and _is_number(item) for item in value)
        return type(default)(value) if fits else None
    if isinstance(default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(default, int):
        return value if _is_number(value) and isinstance(value, int) else None
    if _is_number(value) and (isinstance(value, float) or abs(value) < _LARGEST_INT):
        return float(value) if isinstance(default, float) else str(value)
    return value if isinstance(value, str) and not isinstance(default, float) else None


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is an int or float, but no bool and no NaN."""
    return type(value) is int or (isinstance(value, float) and not math.isnan(value))


def check_values(cfg: CfgNode) -> None:
    """ValueError names the first key with a value outside its limits."""
    for key, choices in CHOICES.items():
        choose(dict.fromkeys(choices), value_of(cfg, key), key)
    for key, limits in RANGES.items():
        _require_within(value_of(cfg, key), limits, key)
    for key, length in LENGTHS.items():
        value = value_of(cfg, key)
        if value is not None and len(value) != length:
            raise ValueError(f"{key} is {shown(value)}, expected {length} numbers")
    for key in (*PATHS, *FOLDER_NAMES):
        _require_path(value_of(cfg, key), key)
    for key in FOLDER_NAMES:
        name = value_of(cfg, key)
        if not Path(name).parts:
            raise ValueError(f"{key} is empty, expected the name of a folder")
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ValueError(f"{key} is {shown(name)}, which leads out of the folder OUTPUT")
    if cfg.TRAIN.WARMUP_EPOCHS > cfg.TRAIN.EPOCHS:
        raise ValueError(
            f"TRAIN.WARMUP_EPOCHS is {cfg.TRAIN.WARMUP_EPOCHS}, more than "
            f"TRAIN.EPOCHS = {cfg.TRAIN.EPOCHS}"
        )
    if cfg.TRAIN.EMA_DECAY and cfg.TRAIN.SHARDING != "none":
        raise ValueError("TRAIN.EMA_DECAY and TRAIN.SHARDING exclude each other")
    _require_few_augmentations(cfg.AUG.AUTO_AUGMENT)


def _require_within(value: Any, limits: tuple[float, float], key: str) -> None:
    low, high = limits
    numbers: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    for number in numbers:
        if number is None or low <= number <= high:
            continue
        if high <= 1000:
            expected = f"from {low} to {high}"
        else:  # huge upper limits are of no interest where a number is too small
            expected = f"at least {low}" if number < low else f"at most {high}"
        raise ValueError(f"{key} is {shown(number)}, expected {expected}")


def _require_path(path: str, key: str) -> None:
    """ValueError where no file system allows such a path."""
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"{key} is {shown(path)}, which is no name of a file") from None
    longest = max(map(len, name.split(b"/")))
    if b"\0" in name or longest > _LONGEST_NAME or len(name) > _LONGEST_PATH:
        raise ValueError(f"{key} is {shown(path)}, which is no name of a file")


def _require_few_augmentations(text: str) -> None:
    """ValueError where timm's policy repeats so often that a picture takes too long."""
    for name, number in re.findall(r"-([nwd])(\d[^-]*)", text):
        # timm itself refuses text that is no number.
        with contextlib.suppress(ValueError):
            number = int(number)
        if isinstance(number, int) and number > MOST_AUGMENTATIONS:
            raise ValueError(
                f"AUG.AUTO_AUGMENT is {shown(text)}, where {name} is {shown(number)}; "
                f"expected at most {MOST_AUGMENTATIONS}"
            )
