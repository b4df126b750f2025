"""Masks of hidden patches: constructed once from the sizes, then called for every picture."""

import math
from collections.abc import Callable

import numpy as np
import torch
from timm.layers import to_2tuple
from torch import Tensor

from utils.messages import require_divisible

Size = int | tuple[int, int]  # a side, or height and width

# Blocks of one mask at most; cells that are still missing after them are hidden singly. Their
# random numbers are drawn for some at a time, which is faster than one by one.
_ROUNDS, _BLOCKS = 4, 25


class RandomMask:
    """Hide ceil(cells * ratio) square cells, drawn uniformly without replacement (section 3.1).

    `image_size` is a side or (height, width); a call returns a bool tensor (height / patch_size,
    width / patch_size), True = hidden.
    ValueError where the sizes do not divide, or nothing or everything would be hidden.
    """

    def __init__(
        self,
        image_size: Size = 192,
        mask_patch_size: int = 32,
        patch_size: int = 4,
        mask_ratio: float = 0.6,
    ) -> None:
        self.cells, self.scale = _cell_grid(image_size, mask_patch_size, patch_size)
        self.num_hidden = _share_of(self.cells, mask_ratio)

    def __call__(self) -> Tensor:
        """Draw one mask."""
        hidden = np.zeros(self.cells, dtype=bool)
        hidden.flat[torch.randperm(hidden.size)[: self.num_hidden].numpy()] = True
        return _enlarged(hidden, self.scale)


class SquareMask:
    """Hide one square of round(sqrt(cells * ratio)) cells a side, at a random place.

    Section 4.1.2. The side is at most the shorter one of the grid; `num_hidden` is the true number
    of cells. Arguments, result and errors are those of `RandomMask`.
    """

    def __init__(
        self, image_size: Size, mask_patch_size: int, patch_size: int, mask_ratio: float
    ) -> None:
        self.cells, self.scale = _cell_grid(image_size, mask_patch_size, patch_size)
        _require_share(mask_ratio)
        self.side = min(round(math.sqrt(math.prod(self.cells) * mask_ratio)), *self.cells)
        self.num_hidden = self.side**2
        _require_both(self.num_hidden, self.cells, mask_ratio)

    def __call__(self) -> Tensor:
        """Draw one mask."""
        top, left = (int(torch.randint(length - self.side + 1, ())) for length in self.cells)
        hidden = np.zeros(self.cells, dtype=bool)
        hidden[top : top + self.side, left : left + self.side] = True
        return _enlarged(hidden, self.scale)


class BlockMask:
    """Hide ceil(cells * ratio) cells in blocks, as BEiT does (arXiv 2106.08254, algorithm 1).

    A block has a random area, from `min_cells` to the number of cells that are still missing, a
    random height / width, log-uniform from `min_aspect` to 1 / `min_aspect`, and a random place.
    Blocks may overlap, and are as high and wide as the grid at most. Two differences from BEiT:
    the last block is cut, so that the number of hidden cells is exact, and `min_cells` is less than
    BEiT's 16, which do not fit 6 x 6 cells.
    Other arguments, result and errors are those of `RandomMask`; ValueError also where `min_cells`
    exceeds the hidden cells, or `min_aspect` is not above 0 and at most 1.
    """

    def __init__(
        self,
        image_size: Size,
        mask_patch_size: int,
        patch_size: int,
        mask_ratio: float,
        *,
        min_cells: int = 2,
        min_aspect: float = 0.3,
    ) -> None:
        self.cells, self.scale = _cell_grid(image_size, mask_patch_size, patch_size)
        self.num_hidden = _share_of(self.cells, mask_ratio)
        if not 1 <= min_cells <= self.num_hidden:
            raise ValueError(
                f"DATA.BLOCK.MIN_CELLS is {min_cells}, expected from 1 to {self.num_hidden}, the "
                f"cell(s) that DATA.MASK_RATIO {mask_ratio} hides"
            )
        if not 0 < min_aspect <= 1:
            raise ValueError(
                f"DATA.BLOCK.MIN_ASPECT is {min_aspect}, expected above 0 and at most 1"
            )
        self.min_cells, self.log_aspect = min_cells, math.log(min_aspect)

    def __call__(self) -> Tensor:
        """Draw one mask."""
        hidden, missing = np.zeros(self.cells, dtype=bool), self.num_hidden
        draws = (draw for _ in range(_ROUNDS) for draw in torch.rand(_BLOCKS, 5).tolist())
        for size, shape, top, left, turn in draws:
            area = self.min_cells + size * max(missing - self.min_cells, 0)
            block = self._block_in(hidden, area, shape, top, left)
            num_new = block.size - np.count_nonzero(block)
            if num_new > missing:  # cut it, turned and mirrored at random: no side is preferred
                block = np.rot90(block.T if turn < 0.5 else block, int(8 * turn))
                block[tuple(np.argwhere(~block)[:missing].T)] = True
                num_new = missing
            elif num_new:
                block.fill(True)
            missing -= num_new
            if not missing:
                break
        else:
            visible = np.flatnonzero(~hidden)
            hidden.flat[visible[torch.randperm(len(visible))[:missing].numpy()]] = True
        return _enlarged(hidden, self.scale)

    def _block_in(
        self, cells: np.ndarray, area: float, shape: float, top: float, left: float
    ) -> np.ndarray:
        """A view of the cells in a block; numbers from 0 to 1 choose its shape and place."""
        rows, columns = self.cells
        root, stretch = math.sqrt(area), math.exp((shape - 0.5) * self.log_aspect)
        height = min(round(root * stretch) or 1, rows)
        width = min(round(root / stretch) or 1, columns)
        first, start = int(top * (rows - height + 1)), int(left * (columns - width + 1))
        return cells[first : first + height, start : start + width]


def _cell_grid(
    image_size: Size, mask_patch_size: int, patch_size: int
) -> tuple[tuple[int, int], int]:
    """Rows and columns of cells, and a cell's side in patches; ValueError where sizes don't fit."""
    height, width = to_2tuple(image_size)
    for side in (height, width):
        require_divisible(side, mask_patch_size, "DATA.IMG_SIZE", "DATA.MASK_PATCH_SIZE")
    require_divisible(mask_patch_size, patch_size, "DATA.MASK_PATCH_SIZE", "PATCH_SIZE")
    return (height // mask_patch_size, width // mask_patch_size), mask_patch_size // patch_size


def _require_share(mask_ratio: float) -> None:
    if not 0 < mask_ratio < 1:
        raise ValueError(f"DATA.MASK_RATIO is {mask_ratio}, expected between 0 and 1")


def _require_both(num_hidden: int, cells: tuple[int, int], mask_ratio: float) -> None:
    """ValueError where nothing or everything would be hidden."""
    number = math.prod(cells)
    if num_hidden == 0:
        raise ValueError(
            f"DATA.MASK_RATIO is {mask_ratio}, which hides none of {number} cell(s); give more, or "
            "smaller cells"
        )
    if num_hidden == number:
        raise ValueError(
            f"DATA.MASK_RATIO is {mask_ratio}, which hides every one of {number} "
            "cell(s) and leaves nothing visible; give less, or more and smaller cells"
        )


def _share_of(cells: tuple[int, int], mask_ratio: float) -> int:
    """ceil(cells * ratio); ValueError where that is everything."""
    _require_share(mask_ratio)
    num_hidden = math.ceil(math.prod(cells) * mask_ratio)
    _require_both(num_hidden, cells, mask_ratio)
    return num_hidden


def _enlarged(cells: np.ndarray, scale: int) -> Tensor:
    """A mask of cells as a mask of patches, of which a cell has scale x scale."""
    return torch.from_numpy(cells.repeat(scale, 0).repeat(scale, 1))


# (image_size, mask_patch_size, patch_size, mask_ratio, and the keys of the section DATA.<NAME>)
# -> sampler of masks, by torch's generator
MASKS: dict[str, Callable[..., Callable[[], Tensor]]] = {
    "random": RandomMask,
    "square": SquareMask,
    "block": BlockMask,
}
