"""Write training checkpoints, whole or not at all, and validate them when they are read."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from utils.checkpoints.names import starts_in
from utils.checkpoints.reading import Content, read_checkpoint, verify_checkpoint
from utils.checkpoints.sharded import REST
from utils.checkpoints.sharded_contents import contents_here, read_contents, verify
from utils.checkpoints.state import EPOCH_FIGURES, LARGEST_NUMBER, STREAK_FIGURES
from utils.files import DamagedError, write_whole
from utils.messages import shown


def save_checkpoint(path: Path, content: Content) -> None:
    """Write a file, whole or not at all.

    ValueError where writing fails; an earlier file of that name is then untouched.
    """
    write_whole(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path) -> Content:
    """Read a training checkpoint on the CPU without running code from it.

    Of a sharded checkpoint, verify the tensors and return all but them. DamagedError where it is
    proven damaged; ValueError where it cannot be read, lacks sections or holds impossible values.
    """
    needed = ["lr_scheduler", "scaler", "epoch", "update"]
    if path.is_dir():
        verify(path, read_contents(path))
        content = read_checkpoint(path / REST)
    else:
        content = read_checkpoint(path)
        needed += ["model", "optimizer"]
    missing = sorted(set(needed) - set(content if isinstance(content, dict) else ()))
    if missing:
        raise ValueError(
            f"checkpoint {path} is not a training checkpoint of this project: it holds no "
            f"{', '.join(missing)} (fine-tuning starts from weights alone: "
            "main_finetune.py --pretrained)"
        )
    _require_possible(content, path)
    return content


def read_back(path: Path, whole: bool) -> None:
    """Read a file that was just written: `whole` as a resume does, else only its checksums.

    For the process that wrote it, while the others train. ValueError where a resume could not read
    the file.
    """
    try:
        if path.is_dir():  # its pieces were read back for their checksums
            contents_here(path)
            verify_checkpoint(path / REST)
        elif whole:
            load_checkpoint(path)
        else:
            verify_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"what was just written cannot be read back: {error}") from None


def newest_checkpoint(
    folder: Path, warn: Callable[[str], None]
) -> tuple[Path, Content] | tuple[None, None]:
    """The newest undamaged checkpoint of a folder, else Nones; call `warn` for damaged ones."""
    for path in starts_in(folder):
        try:
            return path, load_checkpoint(path)
        except DamagedError as error:
            warn(f"{error}; passed over")
    return None, None


_NUM_FIGURES = len(EPOCH_FIGURES) + len(STREAK_FIGURES)
_FIGURES = f"rows of {_NUM_FIGURES} finite numbers"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST_NUMBER  # False for NaN


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_figures(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list)
        and len(row) == _NUM_FIGURES
        and all(isinstance(figure, float) and math.isfinite(figure) for figure in row)
        for row in value
    )


_KINDS: dict[str, Callable[[object], bool]] = {
    "a section": lambda value: isinstance(value, dict),
    "a count": lambda value: type(value) is int and 0 <= value < LARGEST_NUMBER,
    "an epoch": lambda value: type(value) is int and -1 <= value < LARGEST_NUMBER,
    "a whole number": lambda value: type(value) is int and abs(value) < LARGEST_NUMBER,
    "a number": _is_number,
    "a finite number": lambda value: isinstance(value, float) and math.isfinite(value),
    "text": lambda value: isinstance(value, str),
    "names": _is_text_list,
    _FIGURES: _is_figures,
}
# The kind of each value; a section comes before its values.
_VALUES = {
    "epoch": "an epoch",
    "update": "a count",
    "seed": "a count",
    "classes": "names",
    "config": "a section",
    "lr_scheduler": "a section",
    "lr_scheduler.num_steps": "a count",
    "lr_scheduler.offset": "a whole number",
    "lr_scheduler.lr": "a finite number",
    "progress": "a section",
    "progress.epoch": "a count",
    "progress.images": "a count",
    "progress.images_per_update": "a count",
    "progress.figures": _FIGURES,
    "data": "a section",
    "data.images": "a count",
    "data.digest": "text",
    "data.target": "text",
    "best": "a section",
    "best.acc1": "a number",
    "best.epoch": "an epoch",
    "scaler": "a section",
    "scaler.scale": "a number",
    "scaler.growth_factor": "a number",
    "scaler.backoff_factor": "a number",
    "scaler.growth_interval": "a count",
    "scaler._growth_tracker": "a count",
}
_NEWER = (
    "lr_scheduler.offset",
    "lr_scheduler.lr",
    "data.target",
)  # older files of this project lack it


def _require_possible(content: Content, path: Path) -> None:
    """ValueError names the first value of a wrong kind, or missing in its section."""
    for name, kind in _VALUES.items():
        section, _, key = name.rpartition(".")
        holder = content.get(section) if section else content
        if holder is None or (section == "scaler" and not holder):
            continue  # the run has no such section, or no loss scaling
        if key in holder and not _KINDS[kind](holder[key]):
            raise ValueError(f"checkpoint {path}: {name} is {shown(holder[key])}, expected {kind}")
        if section and key not in holder and name not in _NEWER:
            raise ValueError(f"checkpoint {path}: {name} is missing, expected {kind}")
