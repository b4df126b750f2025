"""Adapt positions to another window or image size: bias tables, embeddings and coordinates."""

import math
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from models.windows import Grid
from utils.messages import short

TABLE = "relative_position_bias_table"
_DEGREE = 3
_COORDINATE_RANGE = 8  # of Swin V2's coordinates before the logarithm
_LARGEST_WINDOW = 10**5  # of pre-training; the limit of the configuration


def resize_tables(
    weights: dict[str, Tensor], encoder: nn.Module, aspect: float | None
) -> list[str]:
    """Resize position biases in `weights` to the encoder's windows; return the resized names.

    `aspect` is height / width of the images on which they were trained, None if unknown.
    ValueError names a table that belongs to no window.
    """
    own = encoder.state_dict()
    # Tensors that are no tables despite their names fail in the comparison of shapes.
    tables = [
        name
        for name, value in weights.items()
        if name.endswith(TABLE) and name in own and value.ndim == 2 and value.numel()
    ]
    resized = []
    for name in tables:
        if aspect is None and len(weights[name]) == len(own[name]):
            continue  # no sign of another window
        owner: Any = encoder.get_submodule(name.rpartition(".")[0])
        target: Grid = owner.window  # in tokens, an attribute beside the table
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
    """Resize a table (rows, heads) from window `source` to `target`, each head by a spline.

    The first (2h - 1)(2w - 1) rows are the relative positions of a window (h, w); others are kept
    (a ViT has three). The spacing of known positions grows geometrically from the centre, as in
    BEiT (arXiv 2106.08254). ValueError where the source is too small.
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


def resize_embedding(
    weights: dict[str, Tensor], name: str, encoder: nn.Module, aspect: float | None, num_kept: int
) -> list[str]:
    """Resize an absolute position embedding in `weights` to the encoder's grid, by timm's bicubic.

    Its shape is (1, num_kept + h w, C); the first `num_kept` tokens, such as a class token, are
    kept. `aspect` is h / w, None if unknown: then it is square, unless it has the encoder's length.
    Return its name in a list, [] if unchanged. ValueError where its tokens form no such grid.
    """
    own, stored = getattr(encoder, name, None), weights.get(name)
    # A tensor that is no embedding of this width fails in the comparison of shapes.
    if own is None or stored is None or stored.ndim != 3 or not stored.is_floating_point():
        return []
    if stored.shape[::2] != own.shape[::2] or (aspect is None and stored.shape == own.shape):
        return []
    encoder_: Any = encoder
    target: Grid = encoder_.patch_embed.grid
    try:
        source = grid_of_positions(stored.shape[1] - num_kept, aspect or 1.0)
    except ValueError as error:
        raise ValueError(f"{short(name)}: {error}") from None
    if source == target:
        return []
    weights[name] = resample_abs_pos_embed(stored, list(target), list(source), num_kept)
    return [name]


def grid_of_positions(number: int, aspect: float) -> Grid:
    """The grid (h, w) of this many positions with h / w = `aspect`; ValueError where none is."""
    rows = round(math.sqrt(max(number, 0) * aspect))
    columns = round(rows / aspect)
    if number < 1 or rows * columns != number:
        shape = "square" if aspect == 1 else f"grid of height / width {aspect:g}"
        raise ValueError(f"{number} positions form no {shape}, so they cannot be resized")
    return rows, columns


def _sides(window: Grid) -> Grid:
    """Numbers of relative positions along both axes."""
    return 2 * window[0] - 1, 2 * window[1] - 1


def _geometric_positions(side: int, new_side: int) -> np.ndarray:
    """Coordinates of the `side` known positions, which span about `new_side` positions."""
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

    Shape (1, 2h - 1, 2w - 1, 2): row and column, in units of the size of `pretrained_window`.
    """
    axes = [torch.arange(1 - side, side, dtype=torch.float32) for side in window]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).unsqueeze(0)
    reach = torch.tensor([max(side - 1, 1) for side in pretrained_window], dtype=torch.float32)
    scaled = offsets / reach * _COORDINATE_RANGE
    return scaled.sign() * (scaled.abs() + 1).log2() / math.log2(_COORDINATE_RANGE)


def window_of_coordinates(coordinates: Tensor) -> Grid:
    """The `pretrained_window` of stored `relative_coordinates`; ValueError for invalid ones."""
    shape = tuple(coordinates.shape)
    if len(shape) != 4 or not shape[1] * shape[2] % 2 or shape[::3] != (1, 2):
        raise ValueError(f"relative coordinates of shape {shape}, expected (1, 2h - 1, 2w - 1, 2)")
    window = []
    for size, corner in zip(shape[1:3], coordinates[0, -1, -1].double().tolist(), strict=True):
        # The largest offset, divided by the largest in the window of pre-training.
        share = (_COORDINATE_RANGE**corner - 1) / _COORDINATE_RANGE if 0 < corner < 8 else 1.0
        if share * _LARGEST_WINDOW < size // 2:
            raise ValueError(f"relative coordinates end at {corner:g}, which fits no window")
        window.append(round((size // 2) / share) + 1)
    return window[0], window[1]
