"""Resume a run: find its checkpoint, read it, check that it fits, restore it."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from yacs.config import CfgNode

from utils.checkpoints.contents import load_checkpoint
from utils.checkpoints.differences import changed_data, changed_settings
from utils.checkpoints.names import (
    BEST,
    SHARDED_SUFFIX,
    SUFFIX,
    an_example,
    aside,
    best_in,
    place_of,
    set_aside_in,
    starts_in,
)
from utils.checkpoints.reading import Content
from utils.checkpoints.sharded import complete_saves
from utils.checkpoints.state import Data, Position, TrainState, restore
from utils.files import DamagedError, RunFolder
from utils.messages import require_same_classes
from utils.processes.group import equal_in_all_processes, rank, together
from utils.processes.sharding import is_sharded


@dataclass
class Start:
    """Where a run starts: notes for the log, and damaged checkpoints with reasons.

    `seen` are the names of the checkpoints among which it was chosen, `origin` is --resume's file,
    `endangered` are those that a run from it would overwrite, `pretrained` is --pretrained's file.
    """

    seen: list[str] = field(default_factory=list)
    origin: str = ""
    pretrained: str = ""
    endangered: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)

    def settle(self, folder: RunFolder) -> None:
        """Record in the folder where the run starts; call it with the folder's lock.

        Damaged checkpoints are renamed, so that no later run reads them. ValueError where another
        run has saved checkpoints since this one looked.
        """
        if [path.name for path in starts_in(folder.path)] != self.seen:
            raise changed(folder)
        for path in self.damaged:
            path.rename(aside(path))
        if self.origin or not self.seen:
            pretrained = self.pretrained and os.path.abspath(self.pretrained)
            folder.remember(started_from=self.origin, pretrained=pretrained)
        self.notes += [folder.unlocked] * bool(folder.unlocked)


def changed(folder: RunFolder) -> ValueError:
    """The error for a folder whose checkpoints have changed since this run listed them."""
    return ValueError(
        f"another run has changed the checkpoints in {folder.path} while this one was starting: "
        "start it again"
    )


def resume(
    folder: RunFolder,
    state: TrainState,
    cfg: CfgNode,
    updates_per_epoch: int,
    device: torch.device,
    classes: Sequence[str] = (),
    data: Data | None = None,
) -> Start:
    """Restore the state from the run's checkpoint, if it has one; call it in all processes.

    This is the newest checkpoint in the folder. With MODEL.RESUME it is that file, or the newest
    checkpoint of the run that an earlier call of the same command started from it. Damaged
    checkpoints are skipped. `data` are the run's pictures, which its checkpoints remember; an epoch
    that was begun with other ones, or another SEED, starts anew. ValueError where a checkpoint
    cannot be read or does not fit, where none of several can be used, where later ones would be
    overwritten, and where the processes see different files.
    """
    start = Start()
    state.data = data
    images_per_update = state.position.images_per_update
    found = find(folder, cfg, is_sharded(state.model), start, device)
    for path in found:
        try:
            content = read(path, state)
            require_fit(content, state, classes, path)
            restore(content, state, path)
        except DamagedError as error:
            if cfg.MODEL.RESUME and len(found) == 1:
                raise
            start.damaged[path] = f"{error}; set aside as {aside(path).name}, using the one before"
            continue
        _require_safe(folder.path, start, path)
        start.notes += _place(content, state, path, cfg.SEED)
        start.notes += _adjust(state.position, updates_per_epoch, images_per_update)
        start.notes += changed_settings(content, state, cfg)
        if state.best and state.best.epoch >= 0 and not best_in(folder.path):
            start.notes.append(
                f"{folder.path} holds no {BEST} of the epochs before: one comes with the next "
                f"validation that is better than {state.best.acc1:.3f} %"
            )
        if state.position.epoch >= cfg.TRAIN.EPOCHS:
            start.notes.append(f"nothing is left to train: TRAIN.EPOCHS is {cfg.TRAIN.EPOCHS}")
        break
    else:
        _require_new(folder.path, found, start)
        epoch = cfg.TRAIN.START_EPOCH
        state.position = Position(images_per_update, epoch, update=epoch * updates_per_epoch)
    state.scheduler.set_rates(state.position.place_in_schedule)
    return start


def find(
    folder: RunFolder, cfg: CfgNode, sharded: bool, start: Start, device: torch.device
) -> list[Path]:
    """The checkpoints that the run can resume from, newest first; `start` records all names."""
    together(f"output folder {folder.path} cannot be used", lambda: _take(folder))
    saved = starts_in(folder.path)
    start.seen = [path.name for path in saved]
    if not equal_in_all_processes(zlib.crc32("/".join(start.seen).encode()), device):
        raise ValueError(
            f"the processes see different checkpoints in {folder.path}: it must be shared"
        )
    candidates = _candidates(folder, saved, cfg, start)
    # Where a checkpoint exists both sharded and as one file, keep the form that this run writes.
    return [
        path for path in candidates if path.is_dir() == sharded or _twin(path) not in candidates
    ]


def _take(folder: RunFolder) -> None:
    """Lock the folder, if it exists, and complete saves that a killed run left nearly done."""
    if rank() == 0 and folder.path.is_dir():
        folder.acquire()
        complete_saves(folder.path)


def read(path: Path, state: TrainState) -> Content:
    """Read and validate a checkpoint; an error of any process is raised in all of them."""
    _require_form(path, is_sharded(state.model))
    content = together(f"checkpoint {path} cannot be read", lambda: load_checkpoint(path))
    if "progress" not in content:  # from before runs were saved inside epochs
        position = {"epoch": content["epoch"] + 1, "images": 0, "figures": []}
        content["progress"] = position | {"images_per_update": state.position.images_per_update}
    return content


def _place(content: Content, state: TrainState, path: Path, seed: int) -> list[str]:
    """Return in words where the run is; an epoch begins anew where its order is another one."""
    position = state.position
    begun = f", {position.images} of its images" if position.images else ""
    notes = [f"resumed from {path}: epoch {position.epoch}, update {position.update}{begun}"]
    if changed := changed_data(content, state.data):
        notes.append(changed)
    if content.get("seed") != seed:
        notes.append(f"SEED is {seed}, the checkpoint's {content.get('seed')}: another run")
    if begun and len(notes) > 1:
        notes[-1] += f"; epoch {position.epoch}, which was begun otherwise, starts anew"
        state.restart_epoch()
    if state.data and state.data.target != content.get("data", {}).get("target", ""):
        notes.append(
            "the codebook or tokenizer has another content than the checkpoint's: its classes have "
            "another meaning from here on"
        )
    return notes


def _adjust(position: Position, updates_per_epoch: int, images_per_update: int) -> list[str]:
    """Fit a restored position to today's data and update size; return what differs."""
    notes: list[str] = []
    if position.images > (updates_per_epoch + 1) * images_per_update:
        notes.append(
            f"the checkpoint was saved {position.images} images into its epoch, more than there "
            "are here (other data?): that epoch counts as complete"
        )
        position.complete_epoch()
    inside = position.images // images_per_update
    moved = position.epoch * updates_per_epoch + inside - position.place_in_schedule
    if position.images_per_update != images_per_update or abs(moved) > 1:
        notes.append(
            f"an update is now {images_per_update} images and an epoch {updates_per_epoch} updates "
            f"(an update was {position.images_per_update} images): data and schedule go on at the "
            "same part of the run, the count of updates goes on as well"
        )
        position.offset += moved
        position.images_per_update = images_per_update
    return notes


def _require_new(folder: Path, found: list[Path], start: Start) -> None:
    """ValueError where the folder holds checkpoints but none can be used."""
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoint(s) in {folder} can be used "
            f"({next(iter(start.damaged.values())).partition(';')[0]}); nothing was changed: "
            "to begin anew on purpose move them away, or give another --tag or --output"
        )
    if damaged := set_aside_in(folder):
        raise ValueError(
            f"{folder} holds no checkpoint but {damaged[0].name}, which was set aside as "
            "damaged (where it is not, take .bad off its name): to begin anew on purpose move it "
            "away, or give another --tag or --output"
        )


def _candidates(folder: RunFolder, found: list[Path], cfg: CfgNode, start: Start) -> list[Path]:
    """Checkpoints to resume from, newest first; `start` records which ones would be overwritten."""
    origin = Path(cfg.MODEL.RESUME) if cfg.MODEL.RESUME else None
    if origin is None:
        if found and not cfg.TRAIN.AUTO_RESUME:
            raise ValueError(
                f"{folder.path} holds {found[0].name} of an earlier run and TRAIN.AUTO_RESUME is "
                "off: give another --tag or --output, or --resume CKPT"
            )
        return found
    start.origin = _name_of(origin, folder.path)
    later = [path for path in found if _is_later(path, origin)]
    if folder.remembered().get("started_from") == start.origin and cfg.TRAIN.AUTO_RESUME:
        if later:
            start.notes.append(f"this run was started from {origin}; it goes on from its newest")
        return [*later, origin]
    start.endangered = later
    return [origin]


def _require_safe(folder: Path, start: Start, origin: Path) -> None:
    """ValueError where a run from `origin` would overwrite or remove another run's checkpoints."""
    if start.endangered:
        raise ValueError(
            f"{folder} holds {start.endangered[0].name}, which is not from a run that was started "
            f"with --resume {origin} and would be overwritten: give another --tag (or leave "
            "--resume away to go on from it)"
        )


def _name_of(origin: Path, folder: Path) -> str:
    """The name under which run.json records a file: relative for a file of the folder itself."""
    origin, folder = origin.resolve(), folder.resolve()
    return origin.name if origin.parent == folder else str(origin)


def _is_later(path: Path, origin: Path) -> bool:
    """Whether a checkpoint is later than `origin`; True for any where `origin` lies elsewhere."""
    path, origin = path.resolve(), origin.resolve()
    place, begin = place_of(path), place_of(origin)
    if path == origin:
        return False
    return begin is None or place is None or path.parent != origin.parent or place > begin


def _twin(path: Path) -> Path:
    """The path of the same checkpoint in its other form: one file, or sharded."""
    return path.with_suffix(SUFFIX if path.suffix == SHARDED_SUFFIX else SHARDED_SUFFIX)


def _require_form(path: Path, sharded: bool) -> None:
    """ValueError where a sharded run meets an ordinary checkpoint, or the other way round."""
    if path.is_dir() and path.suffix != SHARDED_SUFFIX:
        raise ValueError(f"checkpoint {path} is a folder: {an_example(path)}")
    if path.is_dir() and not sharded:
        raise ValueError(
            f"checkpoint {path} is a sharded one: go on with TRAIN.SHARDING full, or make one file "
            f"of its weights (python -m tools.export --consolidate {path})"
        )
    if sharded and not path.is_dir():
        raise ValueError(
            f"checkpoint {path} is not a sharded one, and TRAIN.SHARDING is full: go on with none, "
            "or give another --tag or --output"
        )


def require_fit(content: Content, state: TrainState, classes: Sequence[str], source: Path) -> None:
    """ValueError unless the checkpoint holds all parts of this stage, for these classes."""
    if "best" in content and state.best is None:
        raise ValueError(
            f"checkpoint {source} is one of fine-tuning: main_finetune.py goes on from it "
            "(--resume), or evaluates it (--eval --resume)"
        )
    tensors = () if source.is_dir() else ("optimizer", *state.models())
    missing = [name for name in (*tensors, *state.values()) if name not in content]
    if missing:
        raise ValueError(
            f"checkpoint {source} does not go on here: it holds no {', '.join(missing)} "
            "(fine-tuning starts from a pre-trained model with --pretrained)"
        )
    require_same_classes(classes, content.get("classes", []), f"the data and checkpoint {source}")
