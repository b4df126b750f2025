"""Windows of a feature map, with shift and padding, and relative positions inside them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]  # rows and columns of tokens
Attention = Callable[[Tensor, Tensor | None], Tensor]


class Windows(nn.Module):
    """Attention inside the windows of a feature map with `grid` rows and columns.

    Along each axis, a window at least as large as the map shrinks to it and does not shift. A map
    that windows do not divide is padded at the bottom and right; real tokens ignore the padding.
    """

    def __init__(self, grid: Grid, window: int, shifted: bool) -> None:
        super().__init__()
        self.grid = grid
        self.window = shrunk_window(grid, window)
        self.padded = _rounded_up(grid[0], self.window[0]), _rounded_up(grid[1], self.window[1])
        rows, columns = (window // 2 if shifted and size > window else 0 for size in grid)
        self.shift = rows, columns
        self.mask: Tensor | None
        self.register_buffer("mask", self._separate_regions(), persistent=False)

    def forward(self, tokens: Tensor, attention: Attention) -> Tensor:
        """(B, L, C) -> (B, L, C); `attention` takes windows and the mask to add to their scores."""
        feature_map = tokens.unflatten(1, self.grid)
        return self.reverse(attention(self.partition(feature_map), self.mask)).flatten(1, 2)

    def partition(self, feature_map: Tensor) -> Tensor:
        """(B, *grid, C) -> (B * windows, tokens of a window, C)."""
        below, right = self.padded[0] - self.grid[0], self.padded[1] - self.grid[1]
        if below or right:
            feature_map = F.pad(feature_map, (0, 0, 0, right, 0, below))
        if any(self.shift):
            feature_map = torch.roll(feature_map, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        return _cut(feature_map, self.window)

    def reverse(self, windows: Tensor) -> Tensor:
        """Undo `partition`."""
        (height, width), (rows, columns) = self.padded, self.window
        cells = windows.view(-1, height // rows, width // columns, rows, columns, windows.shape[-1])
        feature_map = cells.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])
        if any(self.shift):
            feature_map = torch.roll(feature_map, self.shift, dims=(1, 2))
        return feature_map[:, : self.grid[0], : self.grid[1]]

    def _separate_regions(self) -> Tensor | None:
        """Mask to add to the scores, (windows, L, L); None without shift and padding.

        -100 between tokens that were not neighbours before the shift (as published: a finite
        penalty), -inf between real tokens and padding.
        """
        if not any(self.shift) and self.padded == self.grid:
            return None
        region = 3 * self._bands(0)[:, None] + self._bands(1)[None, :]
        real = torch.zeros(self.padded, dtype=torch.bool)
        real[: self.grid[0], : self.grid[1]] = True
        real = torch.roll(real, (-self.shift[0], -self.shift[1]), dims=(0, 1))
        region, real = (_cut(part[None, ..., None], self.window)[..., 0] for part in (region, real))
        mask = torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)
        return mask.masked_fill(real[:, :, None] != real[:, None, :], -torch.inf)

    def _bands(self, axis: int) -> Tensor:
        """Number of the band to which each row (or column) of the shifted map belongs."""
        size, window, shift = self.padded[axis], self.window[axis], self.shift[axis]
        place = torch.arange(size)
        return (place >= size - window).long() + (place >= size - shift).long()


def shrunk_window(grid: Grid, window: int) -> Grid:
    """Rows and columns of a window, limited to those of the map."""
    return min(window, grid[0]), min(window, grid[1])


def _rounded_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _cut(feature_map: Tensor, window: Grid) -> Tensor:
    """(B, H, W, C) -> (B * windows, tokens of a window, C)."""
    (batch, height, width, channels), (rows, columns) = feature_map.shape, window
    cells = feature_map.view(batch, height // rows, rows, width // columns, columns, channels)
    return cells.transpose(2, 3).reshape(-1, rows * columns, channels)


def join_neighbours(tokens: Tensor, grid: Grid) -> Tensor:
    """Concatenate 2 x 2 neighbours: (B, L, C) -> (B, L/4, 4C).

    The order of (row, column) is (0,0), (1,0), (0,1), (1,1); odd sides are padded with zeros.
    """
    batch, _, channels = tokens.shape
    rows, columns = halved(grid)
    feature_map = tokens.unflatten(1, grid)
    if grid != (2 * rows, 2 * columns):
        feature_map = F.pad(feature_map, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
    quarters = feature_map.reshape(batch, rows, 2, columns, 2, channels)
    return quarters.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows * columns, 4 * channels)


def halved(grid: Grid) -> Grid:
    """Size of the map after `join_neighbours`."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def relative_position_index(height: int, width: int) -> Tensor:
    """Row of the bias table for each pair of positions (L, L); (2 height - 1)(2 width - 1) rows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    row_offset = rows[:, None] - rows[None, :] + height - 1
    column_offset = columns[:, None] - columns[None, :] + width - 1
    return row_offset * (2 * width - 1) + column_offset


def gather_position_bias(table: Tensor, index: Tensor) -> Tensor:
    """Look up biases: table (offsets, heads), row for each pair (L, L) -> (heads, L, L)."""
    # An embedding: with threads, the backward pass of table[index] sums in no fixed order.
    return F.embedding(index, table).permute(2, 0, 1)
