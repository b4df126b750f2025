"""The configuration: defaults, YAML files with BASE, options; checked, then frozen.

Precedence: defaults < BASE files < file < flags < --opts.
"""

import ast
import difflib
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from utils.checks import choose, shown
from utils.defaults import CHOICES, DEFAULTS, FLOAT_LISTS, OPTIONAL, RANGES, SIZES

_LARGEST_FILE = 2**20  # bytes
_MOST_BASES = 16
_LARGEST_INT = 2**1000  # that a float holds


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


def config_of(values: Mapping[str, Any], source: str, opts: Sequence[Any] = ()) -> CfgNode:
    """The frozen configuration that `to_plain` made plain, with options; errors name `source`."""
    cfg = CfgNode(DEFAULTS)
    _merge(cfg, values, "", source)
    _merge_options(cfg, opts)
    _check_values(cfg)
    cfg.freeze()
    return cfg


def is_finetuning(cfg: CfgNode) -> bool:
    """Whether MODEL.NAME says that a recipe fine-tunes."""
    return "finetune" in cfg.MODEL.NAME


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
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(_may_be_path(base) for base in bases):
        raise ValueError(f"{path}: BASE is {shown(bases)}, expected a file or a list of files")
    if len(bases) > _MOST_BASES or len(including) > _MOST_BASES:
        raise ValueError(f"{path}: BASE names more than {_MOST_BASES} files")
    for base in filter(None, bases):
        _merge_file(cfg, path.parent / base, (*including, resolved))
    _merge(cfg, values, "", str(path))


def _may_be_path(base: Any) -> bool:
    return base is None or (isinstance(base, str) and len(base) <= 255 and "\0" not in base)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(_read_text(path))
    except FileNotFoundError:
        raise ValueError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"config file {path} cannot be read: {error.strerror}") from None
    except Exception as error:  # broken text can raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"config file {path} is not valid YAML: {reason}") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"config file {path} holds {type(values).__name__}, expected KEY: value")
    return values or {}


def _read_text(path: Path) -> str:
    """A file's text; ValueError where that is no file of a configuration's size."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"it is larger than {_LARGEST_FILE} bytes")
    return content.decode("utf-8")


def _merge(node: CfgNode, values: Mapping[Any, Any], prefix: str, source: str) -> None:
    for name, value in values.items():
        if not isinstance(name, str) or name not in node:
            name = name if isinstance(name, str) and len(name) < 80 else shown(name)
            key = f"{prefix}{name}"
            guess = difflib.get_close_matches(name, node, n=1)
            hint = f"did you mean {prefix}{guess[0]}? " if guess else ""
            raise ValueError(f"{source}: unknown key {key}; {hint}choices: {', '.join(node)}")
        key = f"{prefix}{name}"
        if not isinstance(node[name], CfgNode):
            node[name] = _convert(value, key, source)
        elif isinstance(value, Mapping):
            _merge(node[name], value, f"{key}.", source)
        else:
            choices = ", ".join(node[name])
            raise ValueError(
                f"{source}: {key} is {shown(value)}, expected a section with {choices}"
            )


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
    default = OPTIONAL.get(key, _default_of(key))
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = math.inf if value in ("inf", ".inf") else value
    if value is None and key in OPTIONAL:
        return None
    if key in SIZES and isinstance(value, list | tuple) and len(value) == 2:
        default = [default, default]
    converted = _as_type_of(default, value, key)
    if converted is None:
        kind = "list" if isinstance(default, list | tuple) else type(default).__name__
        kind += " or [height, width]" if key in SIZES else ""
        raise ValueError(
            f"{source}: {key} is {shown(value)}, expected {kind} (default: {default!r})"
        )
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
        kinds = int | float if key in FLOAT_LISTS else int
        fits = isinstance(value, list | tuple) and all(
            isinstance(item, kinds) and not isinstance(item, bool) for item in value
        )
        return type(default)(value) if fits else None
    if isinstance(default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(default, float):
        fits = number and abs(value) < _LARGEST_INT if isinstance(value, int) else number
        return float(value) if fits and not math.isnan(value) else None
    if isinstance(default, int):
        return value if number and isinstance(value, int) else None
    return str(value) if isinstance(value, str) or number else None


def _check_values(cfg: CfgNode) -> None:
    for key, choices in CHOICES.items():
        choose(dict.fromkeys(choices), _get(cfg, key), key)
    for key, (low, high) in RANGES.items():
        value = _get(cfg, key)
        values = value if isinstance(value, list | tuple) else [value]
        if not all(low <= number <= high for number in values):
            limit = f"from {low} to {high}" if math.isfinite(high) else f"at least {low}"
            raise ValueError(f"{key} is {shown(value)}, expected {limit}")
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
