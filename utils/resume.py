"""Where a run starts: from which checkpoint, if any, and whether that fits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from utils.checkpoint import State, load_checkpoint, newest_checkpoint, restore
from utils.checks import require_same_classes
from utils.distributed import equal_in_all_processes
from utils.sharding import is_sharded


def resume(
    folder: Path,
    parts: Mapping[str, Any],
    cfg: CfgNode,
    updates_per_epoch: int,
    device: torch.device,
    classes: Sequence[str] = (),
) -> tuple[int, list[str]]:
    """Load MODEL.RESUME, else the newest checkpoint of the folder, if any.

    Returns the first epoch to train and what the log should say of it. ValueError where a
    checkpoint does not fit, where it would be overwritten because TRAIN.AUTO_RESUME is off, and
    where the processes do not see the same files.
    """
    notes: list[str] = []
    path, state = _starting_point(folder, cfg, notes)
    epoch = cfg.TRAIN.START_EPOCH if state is None else state["epoch"] + 1
    if not equal_in_all_processes(epoch, device):
        raise ValueError(f"the processes found different checkpoints: {folder} must be shared")
    if state is None or path is None:
        parts["lr_scheduler"].load_state_dict({"num_steps": epoch * updates_per_epoch})
        return epoch, notes
    _check_kind(path, parts["model"])
    _check_stage(state, parts, classes, path)
    restore(state, parts, path)
    notes.append(f"resumed from {path}: epoch {epoch}, update {state['update']}")
    if state.get("seed") != cfg.SEED:
        notes.append(f"SEED is {cfg.SEED}, the checkpoint's {state.get('seed')}: another run")
    if state["update"] != epoch * updates_per_epoch:
        notes.append(
            f"an epoch is now {updates_per_epoch} updates, it was {state['update'] / epoch:g}: "
            "the schedule goes on from the update, the data from the epoch"
        )
    if epoch >= cfg.TRAIN.EPOCHS:
        notes.append(f"nothing is left to train: TRAIN.EPOCHS is {cfg.TRAIN.EPOCHS}")
    return epoch, notes


def _starting_point(
    folder: Path, cfg: CfgNode, notes: list[str]
) -> tuple[Path, State] | tuple[None, None]:
    """The checkpoint of --resume, else the newest of the folder, else none."""
    if cfg.MODEL.RESUME:
        path = Path(cfg.MODEL.RESUME)
        others = [other.name for other in folder.glob("ckpt_epoch_*") if other != path]
        if others:
            notes.append(f"{path} (--resume) wins over {len(others)} checkpoint(s) in {folder}")
        return path, load_checkpoint(path)
    newest, state = newest_checkpoint(folder, notes.append)
    if newest is None or state is None:
        return None, None
    if not cfg.TRAIN.AUTO_RESUME:
        raise ValueError(
            f"{folder} holds {newest.name} of an earlier run and TRAIN.AUTO_RESUME is off: "
            "give another --tag or --output, or --resume CKPT"
        )
    return newest, state


def _check_kind(path: Path, model: nn.Module) -> None:
    """ValueError where a sharded run meets an ordinary checkpoint, or the other way round."""
    if path.is_dir() and not is_sharded(model):
        raise ValueError(
            f"checkpoint {path} is a sharded one: go on with TRAIN.SHARDING full, or make one file "
            f"of its weights (python -m tools.export --consolidate {path})"
        )
    if is_sharded(model) and not path.is_dir():
        raise ValueError(
            f"checkpoint {path} is not a sharded one, and TRAIN.SHARDING is full: go on with none, "
            "or give another --tag or --output"
        )


def _check_stage(
    state: State, parts: Mapping[str, Any], classes: Sequence[str], source: Path
) -> None:
    """ValueError unless the checkpoint holds all parts of this stage, for these classes."""
    tensors = ("model", "optimizer") if source.is_dir() else ()
    missing = [name for name in parts if name not in state and name not in tensors]
    if missing:
        raise ValueError(
            f"checkpoint {source} does not go on here: it holds no {', '.join(missing)} "
            "(fine-tuning starts from a pre-trained model with --pretrained)"
        )
    require_same_classes(classes, state.get("classes", []), f"the data and checkpoint {source}")
