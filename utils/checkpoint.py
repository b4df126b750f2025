"""Checkpoints: tensors and plain types, written whole or not at all, found again by epoch."""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from utils.checks import require_same_shapes
from utils.config import to_plain
from utils.distributed import rank
from utils.files import sync_folder
from utils.safe_load import Weights, model_weights, read_checkpoint
from utils.sharded_checkpoint import (
    REST,
    SUFFIX,
    read_contents,
    restore_tensors,
    save_tensors,
    training_tensors,
)
from utils.sharding import is_sharded

State = dict[str, Any]
_MAY_LACK = "relative_coords_table"


def save_checkpoint(path: Path, state: State) -> None:
    """Write under another name, flush to the disk, then rename: readers see all or nothing.

    ValueError where the file cannot be written; an earlier one of that name is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"checkpoint {path} cannot be written: {error}") from None


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


def newest_checkpoint(
    folder: Path, warn: Callable[[str], None]
) -> tuple[Path, State] | tuple[None, None]:
    """The latest readable checkpoint of a folder; `warn` is told of unreadable ones."""
    numbered = {
        int(match[1]): path
        for path in folder.glob("ckpt_epoch_*")
        if (match := re.fullmatch(rf"ckpt_epoch_(\d+)(\.pth|{re.escape(SUFFIX)})", path.name))
    }
    for epoch in sorted(numbered, reverse=True):
        try:
            return numbered[epoch], load_checkpoint(numbered[epoch])
        except ValueError as error:
            warn(f"{error}; trying the one before")
    return None, None


def save_epoch(
    path: Path,
    epoch: int,
    parts: Mapping[str, Any],
    cfg: CfgNode,
    classes: Sequence[str] = (),
) -> Path:
    """Save the state after an epoch (from 0), with the names of a classifier's classes.

    Call it in all processes. The first writes `path`; of a sharded model each writes its part, to a
    folder of that name but another suffix. Returns what was written.
    The random states follow from SEED and the update, so these two numbers stand for them.
    """
    model, optimizer = parts["model"], parts["optimizer"]
    sharded = is_sharded(model)
    tensors = ("model", "optimizer") if sharded else ()
    path = path.with_suffix(SUFFIX) if sharded else path
    if not sharded and rank() != 0:
        return path
    state: State = {key: part.state_dict() for key, part in parts.items() if key not in tensors}
    state |= {"epoch": epoch, "update": parts["lr_scheduler"].num_steps}
    state |= {"seed": cfg.SEED, "config": to_plain(cfg), "classes": list(classes)}
    if sharded:
        write_rest = functools.partial(save_checkpoint, state=state)
        save_tensors(path, training_tensors(model, optimizer), write_rest)
    else:
        save_checkpoint(path, state)
    return path


def epoch_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch (from 0) lies."""
    return folder / f"ckpt_epoch_{epoch}.pth"


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
