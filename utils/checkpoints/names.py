"""Names of a run's checkpoints: make them, parse them, and find the files again."""

import itertools
import math
import re
from pathlib import Path

SUFFIX, SHARDED_SUFFIX = ".pth", ".sharded"
BEST = f"best{SUFFIX}"
_NAME = re.compile(rf"ckpt_epoch_(\d+)(?:_update_(\d+))?(?:\{SUFFIX}|\{SHARDED_SUFFIX})")


_SET_ASIDE = re.compile(r"(?:ckpt_epoch_|best\.).*\.bad\d*")


def epoch_path(folder: Path, epoch: int) -> Path:
    """The path of the checkpoint at the end of an epoch (from 0)."""
    return folder / f"ckpt_epoch_{epoch}{SUFFIX}"


def inside_path(folder: Path, epoch: int, update: int) -> Path:
    """The path of a checkpoint inside an epoch (from 0), after `update` updates of the run."""
    return folder / f"ckpt_epoch_{epoch}_update_{update}{SUFFIX}"


def place_of(path: Path) -> tuple[int, float] | None:
    """Epoch and update in a checkpoint's name, which order files by age; None for other names.

    The update at the end of an epoch is infinity, so checkpoints inside the epoch are older.
    """
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2]) if match[2] else math.inf) if match else None


def is_inside(path: Path) -> bool:
    """Whether a checkpoint was saved inside an epoch, not at its end."""
    place = place_of(path)
    return place is not None and math.isfinite(place[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first by their names; none where there is no folder.

    OSError where the folder cannot be listed.
    """
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    places = [(place, path.name, path) for path in paths if (place := place_of(path))]
    return [path for *_, path in sorted(places, reverse=True)]


def an_example(folder: Path) -> str:
    """Words for a message about a folder in place of a checkpoint: name its newest one, if any."""
    found = starts_in(folder)
    return (
        f"name a checkpoint in it, for example {found[0]}" if found else "no checkpoint lies in it"
    )


def starts_in(folder: Path) -> list[Path]:
    """Files from which a run can resume: its checkpoints, newest first, else the best one.

    OSError where the folder cannot be listed.
    """
    return checkpoints_in(folder) or best_in(folder)


def best_in(folder: Path) -> list[Path]:
    """The checkpoint of the best validation, as a file, sharded or both; empty without one."""
    best = folder / BEST
    return [path for path in (best, best.with_suffix(SHARDED_SUFFIX)) if path.exists()]


def aside(path: Path) -> Path:
    """An unused name under which to keep a damaged checkpoint."""
    names = (f"{path.name}.bad{number or ''}" for number in itertools.count())
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())


def set_aside_in(folder: Path) -> list[Path]:
    """Damaged checkpoints in a folder, which have names from `aside`."""
    return sorted(path for path in folder.glob("*") if _SET_ASIDE.fullmatch(path.name))
