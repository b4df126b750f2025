"""Names of a run's checkpoints: what they tell, and how they are found again."""

import itertools
import math
import re
from pathlib import Path

SUFFIX, SHARDED_SUFFIX = ".pth", ".sharded"
BEST = f"best{SUFFIX}"
_NAME = re.compile(rf"ckpt_epoch_(\d+)(?:_update_(\d+))?(?:\{SUFFIX}|\{SHARDED_SUFFIX})")


_SET_ASIDE = re.compile(r"(?:ckpt_epoch_|best\.).*\.bad\d*")


def epoch_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint at the end of an epoch (from 0) lies."""
    return folder / f"ckpt_epoch_{epoch}{SUFFIX}"


def inside_path(folder: Path, epoch: int, update: int) -> Path:
    """Where a checkpoint inside an epoch (from 0) lies, after so many updates of the run."""
    return folder / f"ckpt_epoch_{epoch}_update_{update}{SUFFIX}"


def place_of(path: Path) -> tuple[int, float] | None:
    """Epoch and update that a name tells, in the order of a run; None where it tells none.

    Infinity stands for the update at the end of an epoch: those inside are older than it.
    """
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2]) if match[2] else math.inf) if match else None


def is_inside(path: Path) -> bool:
    """Whether a checkpoint was made inside an epoch."""
    place = place_of(path)
    return place is not None and math.isfinite(place[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first by their names; none where there is no folder.

    OSError where the folder cannot be listed.
    """
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    places = [(place, path.name, path) for path in paths if (place := place_of(path))]
    return [path for *_, path in sorted(places, reverse=True)]


def an_example(folder: Path) -> str:
    """What a message says of the newest checkpoint of a folder, if any."""
    found = checkpoints_in(folder)
    return f", for example {found[0]}" if found else ""


def starts_in(folder: Path) -> list[Path]:
    """What a run can go on from: its checkpoints, newest first, else that of the best validation.

    OSError where the folder cannot be listed.
    """
    return checkpoints_in(folder) or best_in(folder)


def best_in(folder: Path) -> list[Path]:
    """The checkpoint of the best validation, if it is there, in one file or sharded."""
    best = folder / BEST
    return [path for path in (best, best.with_suffix(SHARDED_SUFFIX)) if path.exists()]


def aside(path: Path) -> Path:
    """Another name for a damaged checkpoint, which no file has."""
    names = (f"{path.name}.bad{number or ''}" for number in itertools.count())
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())


def set_aside_in(folder: Path) -> list[Path]:
    """Damaged checkpoints of a folder, under the names that `aside` gave them."""
    return sorted(path for path in folder.glob("*") if _SET_ASIDE.fullmatch(path.name))
