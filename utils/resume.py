"""Where a run starts: from which checkpoint, if any, and whether that fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from utils.checkpoint import State, checkpoints_in, load_checkpoint, restore
from utils.checks import require_same_classes
from utils.distributed import equal_in_all_processes
from utils.progress import Progress
from utils.sharding import is_sharded


@dataclass
class Start:
    """The first epoch to train, what the log should say of it, and files that are no use, why."""

    epoch: int
    notes: list[str] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)

    def set_aside(self) -> None:
        """Rename what is no use, so that nobody takes it for a checkpoint."""
        for path in self.damaged:
            path.rename(aside(path))


def aside(path: Path) -> Path:
    """Another name for a damaged checkpoint, beside those that have one."""
    number = len(list(path.parent.glob(f"{path.name}.bad*")))
    return path.with_name(f"{path.name}.bad{number or ''}")


def resume(
    folder: Path,
    parts: Mapping[str, Any],
    cfg: CfgNode,
    updates_per_epoch: int,
    device: torch.device,
    classes: Sequence[str] = (),
) -> Start:
    """Load MODEL.RESUME, else the newest usable checkpoint of the folder, if any.

    ValueError where a checkpoint does not fit, where it would be overwritten because
    TRAIN.AUTO_RESUME is off, and where the processes do not see the same files.
    """
    start = Start(cfg.TRAIN.START_EPOCH)
    images_per_update = parts["progress"].images_per_update
    path, state = _load(folder, parts, cfg, classes, start)
    progress, scheduler = parts["progress"], parts["lr_scheduler"]
    place = -1 if state is None else state["update"]
    if not equal_in_all_processes(place, device):
        raise ValueError(f"the processes found different checkpoints: {folder} must be shared")
    if state is None:
        scheduler.load_state_dict({"num_steps": start.epoch * updates_per_epoch})
        return start
    start.epoch = progress.epoch
    begun = f", {progress.images} of its images" if progress.images else ""
    start.notes.append(
        f"resumed from {path}: epoch {progress.epoch}, update {state['update']}{begun}"
    )
    if state.get("seed") != cfg.SEED:
        start.notes.append(f"SEED is {cfg.SEED}, the checkpoint's {state.get('seed')}: another run")
    _keep_schedule(start, parts, images_per_update, updates_per_epoch)
    if start.epoch >= cfg.TRAIN.EPOCHS:
        start.notes.append(f"nothing is left to train: TRAIN.EPOCHS is {cfg.TRAIN.EPOCHS}")
    return start


def _keep_schedule(
    start: Start, parts: Mapping[str, Any], images_per_update: int, updates_per_epoch: int
) -> None:
    """Have the schedule go on at the same part of the run where an update is now another."""
    progress, scheduler = parts["progress"], parts["lr_scheduler"]
    inside = progress.images // images_per_update
    moved = progress.epoch * updates_per_epoch + inside - scheduler.place
    if progress.images_per_update == images_per_update and abs(moved) <= 1:
        return
    scheduler.move(moved)
    start.notes.append(
        f"an update is now {images_per_update} images and an epoch {updates_per_epoch} updates "
        f"(an update was {progress.images_per_update} images): data and schedule go on at the same "
        "part of the run, the count of updates goes on as well"
    )
    progress.images_per_update = images_per_update


def _load(
    folder: Path,
    parts: Mapping[str, Any],
    cfg: CfgNode,
    classes: Sequence[str],
    start: Start,
) -> tuple[Path, State] | tuple[None, None]:
    """Restore `parts` from the checkpoint of --resume, else from the newest usable one, if any."""
    found = checkpoints_in(folder)
    if cfg.MODEL.RESUME:
        path = Path(cfg.MODEL.RESUME)
        others = [other for other in found if other != path]
        if others:
            start.notes.append(
                f"{path} (--resume) wins over {len(others)} checkpoint(s) in {folder}"
            )
        return path, _restore(path, parts, classes)
    misfits: list[ValueError] = []
    for path in found:
        try:
            state = _restore(path, parts, classes)
        except ValueError as error:
            start.damaged[path] = f"{error}; set aside as {aside(path).name}, using the one before"
            misfits += [error] * isinstance(error, MisfitError)
            continue
        if not cfg.TRAIN.AUTO_RESUME:
            raise ValueError(
                f"{folder} holds {path.name} of an earlier run and TRAIN.AUTO_RESUME is off: "
                "give another --tag or --output, or --resume CKPT"
            )
        return path, state
    if misfits:  # readable ones, of another model: nothing is wrong with them
        raise misfits[0]
    return None, None


class MisfitError(ValueError):
    """A checkpoint that is whole, of another run."""


def _restore(path: Path, parts: Mapping[str, Any], classes: Sequence[str]) -> State:
    state = load_checkpoint(path)
    # Files from before runs were saved inside epochs.
    images = parts["progress"].images_per_update
    state.setdefault("progress", Progress(state["epoch"] + 1, images).state_dict())
    try:
        _check_kind(path, parts["model"])
        _check_stage(state, parts, classes, path)
        restore(state, parts, path)
    except ValueError as error:
        raise MisfitError(str(error)) from None
    return state


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
