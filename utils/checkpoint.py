"""Checkpoints: tensors and plain types, written whole or not at all, found again by their names."""

import contextlib
import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from utils.checks import require_same_shapes, shown
from utils.config import to_plain
from utils.files import write_whole
from utils.safe_load import CHECKSUM_PREFIX, Weights, model_weights, read_checkpoint
from utils.sharded_checkpoint import REST, SUFFIX, restore_tensors
from utils.sharded_contents import read_contents, verify
from utils.sharding import is_sharded

State = dict[str, Any]
_MOMENTS = {frozenset({"step", "exp_avg", "exp_avg_sq"}), frozenset({"momentum_buffer"})}
_LARGEST_NUMBER = 2**53
_MAY_LACK = "relative_coords_table"
_NAME = re.compile(rf"ckpt_epoch_(\d+)(?:_update_(\d+))?(?:\.pth|{re.escape(SUFFIX)})")


class _Summed:
    """A file that adds what is written to a checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, content: Any) -> int:
        """Write and count."""
        self.sum.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        """Nothing: the file is flushed once, at its end."""


def save_checkpoint(path: Path, state: State) -> None:
    """Write a file with its checksum, whole or not at all.

    The SHA-256 of all before it is the comment at the end of the zip archive that torch.save
    makes. ValueError where the file cannot be written; an earlier one of that name is untouched.
    """

    def write(file: IO[bytes]) -> None:
        summed: Any = _Summed(file)
        torch.save(state, summed)
        comment = CHECKSUM_PREFIX + summed.sum.hexdigest().encode()
        file.seek(-2, 2)  # the length of the comment: 0 so far
        file.write(struct.pack("<H", len(comment)) + comment)

    write_whole(path, write)


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint on the CPU without running code from it; ValueError where it is none.

    Of a sharded one all but the tensors, which must be there.
    """
    missing = {"lr_scheduler", "scaler", "epoch", "update"}
    state: State
    if path.is_dir():
        verify(path, read_contents(path))
        state = read_checkpoint(path / REST)
    else:
        state = read_checkpoint(path)
        missing |= {"model", "optimizer"}
    missing -= set(state) if isinstance(state, dict) else set()
    if missing:
        raise ValueError(
            f"checkpoint {path} is not a training checkpoint of this project: "
            f"it holds no {', '.join(sorted(missing))}"
        )
    _require_plain(state, path)
    return state


def _require_plain(state: State, path: Path) -> None:
    """ValueError where what is to be a number or a section is something else."""
    schedule, progress = state["lr_scheduler"], state.get("progress", {})
    sections = {"lr_scheduler": schedule, "progress": progress, "scaler": state["scaler"]}
    sections |= {key: state[key] for key in ("best", "config") if key in state}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ValueError(f"checkpoint {path}: {name} is {shown(section)}, expected a section")
    numbers = {"epoch": state["epoch"] + 1 if type(state["epoch"]) is int else None}
    numbers |= {"update": state["update"], "seed": state.get("seed", 0)}
    numbers["num_steps"] = schedule.get("num_steps")
    for name in ("epoch", "images", "images_per_update"):
        numbers[f"progress {name}"] = progress.get(name, 0)
    for name, number in numbers.items():
        if type(number) is not int or not 0 <= number < _LARGEST_NUMBER:
            raise ValueError(f"checkpoint {path}: {name} is {shown(number)}, expected a number")
    offset, classes = schedule.get("offset", 0), state.get("classes", [])
    if type(offset) is not int or abs(offset) >= _LARGEST_NUMBER:
        raise ValueError(f"checkpoint {path}: offset is {shown(offset)}, expected a number")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"checkpoint {path}: classes is {shown(classes)}, expected names")


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first by their names (`epoch_path`, `inside_path`)."""
    found: dict[tuple[int, float], Path] = {}
    for path in folder.glob("ckpt_epoch_*"):
        if match := _NAME.fullmatch(path.name):
            # Those inside an epoch are older than the one at its end.
            found[int(match[1]), int(match[2]) if match[2] else math.inf] = path
    return [found[key] for key in sorted(found, reverse=True)]


def newest_checkpoint(
    folder: Path, warn: Callable[[str], None]
) -> tuple[Path, State] | tuple[None, None]:
    """The latest readable checkpoint of a folder; `warn` is told of unreadable ones."""
    for path in checkpoints_in(folder):
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            warn(f"{error}; trying the one before")
    return None, None


def training_state(parts: Mapping[str, Any], cfg: CfgNode, classes: Sequence[str] = ()) -> State:
    """All that a run goes on from, as plain values and its own tensors, not copies of them.

    Of a sharded model all but the tensors. The random states follow from SEED and the update, so
    these two numbers stand for them.
    """
    tensors = ("model", "optimizer") if is_sharded(parts["model"]) else ()
    state: State = {key: part.state_dict() for key, part in parts.items() if key not in tensors}
    # The last complete epoch, from 0; -1 before the first.
    state |= {"epoch": parts["progress"].epoch - 1, "update": parts["lr_scheduler"].num_steps}
    return state | {"seed": cfg.SEED, "config": to_plain(cfg), "classes": list(classes)}


def epoch_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint at the end of an epoch (from 0) lies."""
    return folder / f"ckpt_epoch_{epoch}.pth"


def is_inside(path: Path) -> bool:
    """Whether a checkpoint was made inside an epoch."""
    return "_update_" in path.name


def inside_path(folder: Path, epoch: int, update: int) -> Path:
    """Where a checkpoint inside an epoch (from 0) lies, after so many updates of the run."""
    return folder / f"ckpt_epoch_{epoch}_update_{update}.pth"


def restore(state: State, parts: Mapping[str, Any], source: Path) -> None:
    """Load every part, models strictly; ValueError names the first differences.

    Nothing is changed unless the models fit. Settings of the optimizer (weight decay, betas) stay
    those of the configuration; only its moments are read.
    """
    if source.is_dir():
        restore_tensors(source, parts["model"], parts["optimizer"])
    else:
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                restore_model(model_weights(state, source, (name,)), part, source)
        _restore_optimizer(state["optimizer"], parts["optimizer"], source)
    for name, part in parts.items():
        if not isinstance(part, nn.Module | Optimizer):
            with _one_line_errors(name, source):
                part.load_state_dict(state[name])


def restore_model(weights: Weights, model: nn.Module, source: Path) -> None:
    """Load the model strictly; ValueError names the first differences."""
    own = model.state_dict()
    # Buffers that follow from the configuration, where a file does not store them.
    weights = {name: own[name] for name in own if name.endswith(_MAY_LACK)} | weights
    require_same_shapes(
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: tuple(value.shape) for name, value in own.items()},
        f"checkpoint {source}",
    )
    model.load_state_dict(weights)


def _restore_optimizer(state: State, optimizer: Optimizer, source: Path) -> None:
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    with _one_line_errors("the optimizer", source):
        optimizer.load_state_dict(state)
        _require_moments(optimizer)
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)


def _require_moments(optimizer: Optimizer) -> None:
    """ValueError unless moments are of one known kind, of their parameters' shapes.

    A parameter that never had a gradient has none.
    """
    kinds = {frozenset(moments) for moments in optimizer.state.values() if moments}
    if len(kinds) > 1 or not kinds <= _MOMENTS:
        raise ValueError("its parameters have other moments")
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            shape = () if name == "step" else parameter.shape
            if not isinstance(moment, torch.Tensor) or moment.shape != shape:
                raise ValueError(f"a moment {name} is not of shape {tuple(shape)}")


@contextlib.contextmanager
def _one_line_errors(what: str, source: Path) -> Iterator[None]:
    """Every failure inside as a ValueError of one line: a file's content can raise anything."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"checkpoint {source} does not fit {what}: {reason}") from None
