"""Masks: how many cells, where, and how random."""

import math

import pytest
import torch

from data.masking import RandomMask


@pytest.mark.parametrize(
    ("size", "cell", "patch", "ratio"),
    [(192, 32, 4, 0.6), (224, 32, 16, 0.6), (192, 16, 4, 0.1), (64, 8, 4, 0.98), (32, 8, 1, 0.01)],
)
def test_exactly_the_ceiling_of_cells_times_ratio_is_hidden(
    size: int, cell: int, patch: int, ratio: float
) -> None:
    mask = RandomMask(size, cell, patch, ratio)()
    scale, side = cell // patch, size // cell
    assert mask.dtype == torch.bool
    assert mask.shape == (size // patch, size // patch)
    cells = mask[::scale, ::scale]
    assert cells.sum() == math.ceil(side * side * ratio)
    whole = cells.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    assert torch.equal(mask, whole)


def test_published_sizes_hide_22_of_36_and_30_of_49_cells() -> None:
    assert RandomMask(192, 32, 4, 0.6).num_hidden == 22
    assert RandomMask(224, 32, 16, 0.6).num_hidden == 30


def test_every_cell_is_hidden_equally_often() -> None:
    torch.manual_seed(0)
    mask = RandomMask(64, 16, 16, 0.5)
    share = torch.stack([mask().float() for _ in range(4000)]).mean(0)
    assert (share - 0.5).abs().max() < 0.04  # five standard deviations


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((200, 32, 4, 0.6), "nearest legal: 192 or 224"),
        ((192, 24, 16, 0.6), "DATA.MASK_PATCH_SIZE is 24.*16 or 32"),
        ((192, 32, 4, 0.0), "MASK_RATIO is 0.0"),
        ((192, 32, 4, 1.0), "MASK_RATIO is 1.0"),
        ((192, 32, 4, 0.98), "hides every one of 36 cell"),
        ((32, 32, 4, 0.6), "hides every one of 1 cell"),
    ],
)
def test_impossible_sizes_and_ratios_are_errors(
    sizes: tuple[int, int, int, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RandomMask(*sizes)
