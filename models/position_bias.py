"""Relative positions of weights from another window or image size: tables and coordinates."""

import math
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor, nn

from models.windows import Grid
from utils.messages import short

TABLE = "relative_position_bias_table"
_DEGREE = 3
_COORDINATE_RANGE = 8  # of Swin V2's coordinates before the logarithm
_LARGEST_WINDOW = 10**5  # of pre-training, as in limits of the configuration


def resize_tables(
    weights: dict[str, Tensor], encoder: nn.Module, aspect: float | None
) -> list[str]:
    """Resize the position biases in `weights` to the encoder's windows, in place; their names.

    `aspect` is height / width of the images that they were learned from, None where nothing tells.
    ValueError names a table that belongs to no window.
    """
    own = encoder.state_dict()
    # What has the name of a table and is none is left to the comparison of shapes.
    tables = [
        name
        for name, value in weights.items()
        if name.endswith(TABLE) and name in own and value.ndim == 2 and value.numel()
    ]
    resized = []
    for name in tables:
        if aspect is None and len(weights[name]) == len(own[name]):
            continue  # nothing tells of another shape
        owner: Any = encoder.get_submodule(name.rpartition(".")[0])
        target: Grid = owner.window  # of tokens, beside the table
        num_kept = len(own[name]) - math.prod(_sides(target))
        try:
            window = window_of_table(len(weights[name]) - num_kept, aspect or 1.0)
            if window != target:
                weights[name] = resize_position_bias(weights[name], window, target)
                resized.append(name)
        except ValueError as error:
            raise ValueError(f"{short(name)}: {error}") from None
    return resized


def resize_position_bias(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize a table (rows, heads) of the window `source` to `target`, each head by a spline.

    Rows are the relative positions of a window (h, w), (2h - 1)(2w - 1), then any number that are
    kept (a ViT has three). Known positions are laid out in geometrically growing steps, finest at
    the centre, as BEiT does (arXiv 2106.08254). ValueError where the source is too small.
    """
    sides, new_sides = _sides(source), _sides(target)
    if min(sides) <= _DEGREE:
        raise ValueError(f"position biases of a window of {source} are too few to resize")
    known = [_geometric_positions(*pair) for pair in zip(sides, new_sides, strict=True)]
    wanted = [np.arange(-(side // 2), side // 2 + 1, dtype=np.float64) for side in new_sides]
    num_offsets = math.prod(sides)
    heads = table[:num_offsets].T.reshape(-1, *sides).double().numpy()
    resized = [
        RectBivariateSpline(*known, head, kx=_DEGREE, ky=_DEGREE)(*wanted).reshape(-1)
        for head in heads
    ]
    offsets = torch.from_numpy(np.stack(resized, axis=1)).to(table.dtype)
    return torch.cat((offsets, table[num_offsets:]))


def window_of_table(num_offsets: int, aspect: float) -> Grid:
    """The window (h, w) with this many relative positions and h / w nearest to `aspect`.

    At `aspect` 1 it is square; ValueError where there is none.
    """
    pairs = [
        ((one + 1) // 2, (num_offsets // one + 1) // 2)
        for one in range(1, max(num_offsets, 0) + 1, 2)
        if num_offsets % one == 0 and num_offsets % 2
    ]
    if aspect == 1:
        pairs = [pair for pair in pairs if pair[0] == pair[1]]
    if not pairs:
        raise ValueError(f"a table of {num_offsets} relative positions belongs to no such window")
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] / aspect)))


def _sides(window: Grid) -> Grid:
    """Numbers of relative positions along both axes."""
    return 2 * window[0] - 1, 2 * window[1] - 1


def _geometric_positions(side: int, new_side: int) -> np.ndarray:
    """Where the `side` known positions lie, so that they span about `new_side` positions."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1 - ratio ** (side // 2)) / (1 - ratio)
        if reach > new_side // 2:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(side // 2))
    return np.concatenate((-distances[::-1], [0.0], distances))


def relative_coordinates(window: Grid, pretrained_window: Grid) -> Tensor:
    """Log-spaced coordinates of all relative positions (arXiv 2111.09883, section 3.3).

    (1, 2h - 1, 2w - 1, 2), row and column, in units of the size of `pretrained_window`.
    """
    axes = [torch.arange(1 - side, side, dtype=torch.float32) for side in window]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).unsqueeze(0)
    reach = torch.tensor([max(side - 1, 1) for side in pretrained_window], dtype=torch.float32)
    scaled = offsets / reach * _COORDINATE_RANGE
    return scaled.sign() * (scaled.abs() + 1).log2() / math.log2(_COORDINATE_RANGE)


def window_of_coordinates(coordinates: Tensor) -> Grid:
    """The `pretrained_window` of stored `relative_coordinates`; ValueError where they are none."""
    shape = tuple(coordinates.shape)
    if len(shape) != 4 or not shape[1] * shape[2] % 2 or shape[::3] != (1, 2):
        raise ValueError(f"relative coordinates of shape {shape}, expected (1, 2h - 1, 2w - 1, 2)")
    window = []
    for size, corner in zip(shape[1:3], coordinates[0, -1, -1].double().tolist(), strict=True):
        # The largest offset, as a share of the largest in the window of pre-training.
        share = (_COORDINATE_RANGE**corner - 1) / _COORDINATE_RANGE if 0 < corner < 8 else 1.0
        if share * _LARGEST_WINDOW < size // 2:
            raise ValueError(f"relative coordinates end at {corner:g}, as those of no window do")
        window.append(round((size // 2) / share) + 1)
    return window[0], window[1]
