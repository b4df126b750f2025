"""What a checkpoint tells of the model it is from, and what an encoder changed to take it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from torch import Tensor

from models.windows import Grid, halved, shrunk_window

_LARGEST_SIDE = 10**5  # of an image; a file from anybody may tell more


@dataclass
class Adapted:
    """What an encoder did to foreign weights, which it changed in place.

    Names of tensors that it resized, buffers that it computed itself, and notes for the log.
    """

    resized: list[str] = field(default_factory=list)
    computed: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def image_aspect(content: object) -> float | None:
    """Height / width of the images it was trained on, where the stored configuration tells."""
    size = _image_size(content)
    return None if size is None else size[0] / size[1]


def swinv2_window(content: object, stage: int) -> Grid | None:
    """The window for which a Swin V2 learned its biases, where the stored configuration tells."""
    keys = _section(_section(_section(content, "config"), "MODEL"), "SWINV2")
    pretrained = keys.get("PRETRAINED_WINDOW_SIZES")
    if isinstance(pretrained, list | tuple) and stage < len(pretrained):
        side = pretrained[stage]
        if _is_size(side):
            return side, side
    size, patch, window = (
        _image_size(content),
        keys.get("PATCH_SIZE", 0),
        keys.get("WINDOW_SIZE", 0),
    )
    if size is None or not _is_size(patch) or not _is_size(window):
        return None
    grid = max(size[0] // patch, 1), max(size[1] // patch, 1)
    for _ in range(stage):
        grid = halved(grid)
    return shrunk_window(grid, window)


def _image_size(content: object) -> Grid | None:
    size = _section(_section(content, "config"), "DATA").get("IMG_SIZE")
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_is_size, sides)):
        return None
    return sides[0], sides[1]


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _LARGEST_SIDE


def _section(content: object, key: str) -> Mapping[str, object]:
    found = content.get(key) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}
