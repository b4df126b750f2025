"""What a checkpoint tells of the model it is from: sizes of its images and windows."""

from collections.abc import Mapping
from typing import Any

from models.windows import Grid, halved, shrunk_window

_LARGEST_SIDE = 10**5  # of an image; a file from anybody may tell more


def image_aspect(state: Any) -> float | None:
    """Height / width of the images it was trained on, where the stored configuration tells."""
    size = _image_size(state)
    return None if size is None else size[0] / size[1]


def swinv2_window(state: Any, stage: int) -> Grid | None:
    """The window for which a Swin V2 learned its biases, where the stored configuration tells."""
    keys = _section(_section(_section(state, "config"), "MODEL"), "SWINV2")
    pretrained = keys.get("PRETRAINED_WINDOW_SIZES")
    if isinstance(pretrained, list | tuple) and stage < len(pretrained):
        side = pretrained[stage]
        if _is_size(side):
            return side, side
    size, patch, window = _image_size(state), keys.get("PATCH_SIZE", 0), keys.get("WINDOW_SIZE", 0)
    if size is None or not _is_size(patch) or not _is_size(window):
        return None
    grid = max(size[0] // patch, 1), max(size[1] // patch, 1)
    for _ in range(stage):
        grid = halved(grid)
    return shrunk_window(grid, window)


def _image_size(state: Any) -> Grid | None:
    size = _section(_section(state, "config"), "DATA").get("IMG_SIZE")
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_is_size, sides)):
        return None
    return sides[0], sides[1]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_SIDE


def _section(state: Any, key: str) -> Mapping[str, Any]:
    found = state.get(key) if isinstance(state, Mapping) else None
    return found if isinstance(found, Mapping) else {}
