"""Checkpoints: tensors and plain types, written whole or not at all, found again by their names."""

import hashlib
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from utils.checks import require_same_shapes
from utils.config import to_plain
from utils.files import write_whole
from utils.safe_load import CHECKSUM_PREFIX, Weights, model_weights, read_checkpoint
from utils.sharded_checkpoint import (
    REST,
    SUFFIX,
    read_contents,
    restore_tensors,
)
from utils.sharding import is_sharded

State = dict[str, Any]
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
        read_contents(path)
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
    return state


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
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise ValueError(f"checkpoint {source} does not fit the optimizer: {error}") from None
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
