"""The configuration: defaults, YAML files with BASE, options; checked, then frozen.

Precedence: defaults < BASE files < file < flags < --opts.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode

from utils.config.defaults import DEFAULTS
from utils.config.recipes import read_files
from utils.config.values import check_values, convert
from utils.messages import one_of, short, shown


def get_config(cfg_file: str | Path | None = None, opts: Sequence[object] = ()) -> CfgNode:
    """Build the frozen configuration from a YAML file and a flat KEY, VALUE list.

    Raises ValueError for unknown keys, wrong types, values out of range and unreadable files.
    """
    return with_options(read_recipe(cfg_file), opts)


def read_recipe(cfg_file: str | Path | None) -> CfgNode:
    """A YAML file on top of the defaults, not yet checked: options may still change it."""
    cfg = CfgNode(DEFAULTS)
    for path, values in read_files(Path(cfg_file)) if cfg_file is not None else ():
        _merge(cfg, values, "", str(path))
    return cfg


def with_options(recipe: CfgNode, opts: Sequence[object]) -> CfgNode:
    """The frozen configuration that a recipe and a flat KEY, VALUE list make."""
    cfg = recipe.clone()
    _merge_options(cfg, opts)
    check_values(cfg)
    cfg.freeze()
    return cfg


def config_of(values: Mapping[str, object], source: str, opts: Sequence[object] = ()) -> CfgNode:
    """The frozen configuration that `to_plain` made plain, with options; errors name `source`."""
    cfg = CfgNode(DEFAULTS)
    _merge(cfg, values, "", source)
    return with_options(cfg, opts)


def is_finetuning(cfg: CfgNode) -> bool:
    """Whether MODEL.NAME says that a recipe fine-tunes."""
    return stage_of(cfg) == "fine-tuning"


def stage_of(cfg: CfgNode) -> str | None:
    """What MODEL.NAME says of a recipe: fine-tuning, pre-training, or nothing.

    Published names are simmim_pretrain and simmim_finetune.
    """
    if "finetune" in cfg.MODEL.NAME:
        return "fine-tuning"
    words = re.split(r"[^a-z]+", cfg.MODEL.NAME)
    return "pre-training" if "pretrain" in words else None


def to_plain(cfg: CfgNode) -> dict[str, object]:
    """The configuration as nested dicts of plain values, for checkpoints and YAML files."""
    return {
        key: to_plain(value)
        if isinstance(value, CfgNode)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in cfg.items()
    }


def keys_like(name: str) -> list[str]:
    """Keys of the whole configuration that somebody may mean by a name, the likeliest first."""
    wanted = name.upper().replace("-", "_")
    keys = list(keys_below(DEFAULTS))
    last = wanted.rpartition(".")[2]
    if wanted in keys:
        return [wanted]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    parts = [key for key in keys if last in key.rpartition(".")[2].split("_")]
    near = difflib.get_close_matches(wanted, keys, n=1, cutoff=0.8)
    by_last = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near += [by_last[guess] for guess in difflib.get_close_matches(last, by_last, 1, 0.7)]
    return list(dict.fromkeys(same or near or parts))[:3]


def keys_below(section: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Every key of nested sections, as DATA.BATCH_SIZE."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from keys_below(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _merge(node: CfgNode, values: Mapping[str, object], prefix: str, source: str) -> None:
    for name, value in values.items():
        key = f"{prefix}{name if isinstance(name, str) else shown(name)}"
        if not isinstance(name, str) or name not in node:
            guesses = keys_like(key) if len(key) < 80 else []
            hint = f"did you mean {one_of(guesses)}? " if guesses else ""
            choices = ", ".join(node)
            raise ValueError(f"{source}: unknown key {short(key)}; {hint}choices: {choices}")
        if not isinstance(node[name], CfgNode):
            node[name] = convert(value, key, source)
        elif isinstance(value, Mapping):
            _merge(node[name], value, f"{key}.", source)
        else:
            choices = ", ".join(node[name])
            raise ValueError(
                f"{source}: {key} is {shown(value)}, expected a section with {choices}"
            )


def _merge_options(cfg: CfgNode, opts: Sequence[object]) -> None:
    for index, text in enumerate(map(str, opts)):
        if text[:1] in ("[", "(") and text[-1] not in "])" and index % 2:
            rest = [*map(str, opts[index + 1 :])]
            end = next((i for i, part in enumerate(rest) if part[-1:] in ("]", ")")), len(rest))
            value = " ".join([text, *rest[: end + 1]])
            raise ValueError(f'a list needs quotes: --opts {opts[index - 1]} "{short(value)}"')
    if len(opts) % 2:
        raise ValueError(
            f"options come as KEY VALUE pairs, with a space between; {opts[-1]!r} has no value"
        )
    for key, given in zip(opts[::2], opts[1::2], strict=True):
        nested = given  # then in its section, in the section of that
        for name in reversed(str(key).split(".")):
            nested = {name: nested}
        assert isinstance(nested, dict)  # every key has a name
        _merge(cfg, nested, "", "options")
