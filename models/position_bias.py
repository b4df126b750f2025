"""Resize tables of relative position biases, for weights of another window or image size."""

import math

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

_DEGREE = 3
_EXTRA_ROWS = 3  # of a ViT's table: CLS to patch, patch to CLS, CLS to CLS


def resize_position_bias(table: Tensor, num_rows: int) -> Tensor:
    """Resize a table (rows, heads) to (num_rows, heads), each head by a bicubic spline.

    Rows are the relative positions of a square window, (2W - 1)^2, and for a ViT three more, which
    are kept. Known positions are laid out in geometrically growing steps, finest at the centre, as
    BEiT does (arXiv 2106.08254). ValueError where one of the numbers of rows is of no window.
    """
    side, num_extra = _side_and_extra(len(table))
    new_side, new_extra = _side_and_extra(num_rows)
    if len(table) == num_rows:
        return table
    if num_extra != new_extra or side <= _DEGREE:
        raise ValueError(f"a table of {len(table)} rows cannot be resized to {num_rows}")
    known = _geometric_positions(side, new_side)
    wanted = np.arange(-(new_side // 2), new_side // 2 + 1, dtype=np.float64)
    heads = table[: side * side].T.reshape(-1, side, side).double().numpy()
    resized = [
        RectBivariateSpline(known, known, head, kx=_DEGREE, ky=_DEGREE)(wanted, wanted).reshape(-1)
        for head in heads
    ]
    offsets = torch.from_numpy(np.stack(resized, axis=1)).to(table.dtype)
    return torch.cat((offsets, table[side * side :]))


def _side_and_extra(num_rows: int) -> tuple[int, int]:
    """Side of the square of relative positions, 2W - 1, and the number of rows after it."""
    for extra in (0, _EXTRA_ROWS):
        side = math.isqrt(max(num_rows - extra, 0))
        if side % 2 and side * side == num_rows - extra:
            return side, extra
    raise ValueError(f"a table of {num_rows} rows belongs to no square window")


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
