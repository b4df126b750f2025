"""Masks: how many cells, where, and how random."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chisquare
from torch import Tensor

from data import build_mask, build_pretrain_dataset
from data.masking import MASKS, BlockMask, RandomMask, SquareMask
from utils.config import get_config

# An image's size, a cell's and a patch's: from 4 to 64 pixels a cell, square and not square.
SIZES: list[Any] = [(192, cell, 4) for cell in (4, 8, 16, 32, 64)]
SIZES += [(224, 32, 16), (32, 8, 1), ((96, 192), 16, 4), ((256, 64), 32, 8)]
RATIOS = (0.1, 0.3, 0.5, 0.6, 0.8, 0.98)
UNLIKELY = 1e-4  # probability of a deviation at which a test fails; the seeds are fixed
Cells = tuple[int, int]


def cells_of(mask: Tensor, scale: int) -> Tensor:
    """The cells of a mask of patches, each of which is hidden or visible as a whole."""
    cells = mask[::scale, ::scale]
    assert torch.equal(cells.repeat_interleave(scale, 0).repeat_interleave(scale, 1), mask)
    return cells


def expected_count(name: str, cells: Cells, ratio: float) -> int:
    number = math.prod(cells) * ratio
    if name == "square":
        return int(min(round(math.sqrt(number)), *cells)) ** 2
    return math.ceil(number)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("size", "cell", "patch"), SIZES)
@pytest.mark.parametrize("name", MASKS)
def test_exactly_the_promised_number_of_cells_is_hidden(
    name: str, size: Any, cell: int, patch: int, ratio: float
) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    cells = height // cell, width // cell
    count = expected_count(name, cells, ratio)
    if count == math.prod(cells):
        with pytest.raises(ValueError, match="leaves nothing visible"):
            MASKS[name](size, cell, patch, ratio)
        return
    smaller_blocks = {"min_cells": 1} if name == "block" and count == 1 else {}
    mask: Any = MASKS[name](size, cell, patch, ratio, **smaller_blocks)
    assert mask.num_hidden == count
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = mask()
        assert drawn.dtype == torch.bool
        assert drawn.shape == (height // patch, width // patch)
        assert cells_of(drawn, cell // patch).sum() == count
        torch.manual_seed(seed)
        assert torch.equal(mask(), drawn)


def test_published_sizes_hide_22_of_36_and_30_of_49_cells() -> None:
    assert RandomMask(192, 32, 4, 0.6).num_hidden == 22
    assert RandomMask(224, 32, 16, 0.6).num_hidden == 30


@pytest.mark.parametrize(("size", "ratio"), [(64, 0.5), ((32, 96), 0.3)])
def test_random_hides_every_cell_equally_often(size: Any, ratio: float) -> None:
    torch.manual_seed(0)
    mask, draws = RandomMask(size, 16, 16, ratio), 10_000
    counts = torch.stack([mask() for _ in range(draws)]).double().sum(0)
    cells, share = counts.numel(), mask.num_hidden / counts.numel()
    # Cells of one mask are drawn without replacement, which makes the variance smaller.
    statistic = ((counts - draws * share) ** 2).sum() / (draws * share * (1 - share))
    assert chi2.sf(statistic.item() * (cells - 1) / cells, cells - 1) > UNLIKELY


@pytest.mark.parametrize(("size", "ratio"), [(192, 0.25), ((96, 160), 0.3)])
def test_square_lies_at_every_place_equally_often(size: Any, ratio: float) -> None:
    torch.manual_seed(0)
    mask = SquareMask(size, 32, 32, ratio)
    rows, columns = mask.cells
    counts = torch.zeros(rows - mask.side + 1, columns - mask.side + 1)
    for _ in range(10_000):
        hidden = mask().nonzero()
        (top, left), (bottom, right) = hidden[0].tolist(), hidden[-1].tolist()
        assert (bottom - top + 1, right - left + 1) == (mask.side, mask.side)
        counts[top, left] += 1
    assert chisquare(counts.flatten().numpy()).pvalue > UNLIKELY


@pytest.mark.parametrize("min_cells", [2, 8])  # 8 of 9: the second block is cut to one cell
def test_blocks_prefer_no_side_of_the_image(min_cells: int) -> None:
    """Turning or mirroring a mask of blocks gives one that is as likely."""
    torch.manual_seed(0)
    mask, draws = BlockMask(96, 16, 16, 0.25, min_cells=min_cells), 10_000
    share = torch.stack([mask() for _ in range(draws)]).double().mean(0)
    noise = math.sqrt(2 * 0.25 * 0.75 / draws)
    for other in (share.flip(0), share.flip(1), share.flip(0, 1), share.T):
        assert (other - share).abs().max() < 4.5 * noise
    assert share[2:4, 2:4].mean() > share[0, 0] + 0.1  # few blocks reach a corner


@pytest.mark.parametrize(
    ("shape", "expected"), [(0.0, (22, 7)), (0.25, (16, 9)), (0.5, (12, 12)), (1.0, (7, 22))]
)
def test_the_aspect_of_a_block_is_log_uniform(shape: float, expected: Cells) -> None:
    """Of 144 cells: height / width is 0.3 ** -1, 0.3 ** -0.5, 1 and 0.3, then sides are rounded."""
    mask = BlockMask(640, 16, 16, 0.6, min_aspect=0.3)
    cells = np.zeros(mask.cells, dtype=bool)
    assert mask._block_in(cells, 144, shape, top=0.5, left=0.5).shape == expected


@pytest.mark.parametrize("min_aspect", [2.3e-308, 1e-9, 1.0])  # programs flush denormals
@pytest.mark.parametrize("size", [(64, 64), (16, 1024), (1024, 16)])
def test_blocks_that_do_not_fit_the_grid_still_hide_the_exact_number(
    size: Cells, min_aspect: float
) -> None:
    for ratio in (0.1, 0.5, 0.9):
        mask = BlockMask(size, 8, 8, ratio, min_cells=2, min_aspect=min_aspect)
        for _ in range(50):
            assert mask().sum() == mask.num_hidden


def test_cells_that_blocks_rarely_meet_are_hidden_singly() -> None:
    """All but 3 of 10,000: small blocks would need thousands of tries to meet the rest."""
    mask = BlockMask(400, 4, 4, 0.9997, min_aspect=1.0, min_cells=1)
    for _ in range(10):
        assert (~mask()).sum() == 3


@pytest.mark.parametrize("name", MASKS)
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
    name: str, sizes: tuple[int, int, int, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        MASKS[name](*sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MASK", "square", "MASK_RATIO", 0.006], "0.006, which hides none of 36 cell.*give more"),
        (["BLOCK.MIN_CELLS", 23], "MIN_CELLS is 23, expected from 1 to 22, .*MASK_RATIO 0.6 hides"),
        (["BLOCK.MIN_CELLS", 16, "MASK_RATIO", 0.4], "MIN_CELLS is 16, expected from 1 to 15"),
        (["BLOCK.MIN_CELLS", 0], "MIN_CELLS is 0, expected at least 1"),
        (["BLOCK.MIN_ASPECT", 0.0], "MIN_ASPECT is 0.0, expected above 0 and at most 1"),
        (["BLOCK.MIN_ASPECT", 1.5], "MIN_ASPECT is 1.5, expected from 0 to 1"),
    ],
)
def test_a_setting_that_no_mask_can_have_is_an_error(opts: list[Any], message: str) -> None:
    keys = [f"DATA.{word}" if index % 2 == 0 else word for index, word in enumerate(opts)]
    with pytest.raises(ValueError, match=message) as error:
        build_mask(get_config(None, ["DATA.IMG_SIZE", 192, "DATA.MASK", "block", *keys]), 4)
    assert "\n" not in str(error.value)


def test_keys_of_a_masks_section_reach_its_constructor() -> None:
    opts = ["DATA.BLOCK.MIN_CELLS", 5, "DATA.BLOCK.MIN_ASPECT", 0.5]
    mask: Any = build_mask(get_config(None, ["DATA.MASK", "block", *opts]), 16)
    assert (mask.min_cells, mask.log_aspect) == (5, math.log(0.5))
    assert isinstance(build_mask(get_config(None, opts), 16), RandomMask)


@pytest.mark.parametrize("name", MASKS)
def test_a_samples_mask_follows_from_seed_epoch_and_index(name: str) -> None:
    opts = ["DATA.DATASET", "shapes", "DATA.NUM_SHAPES", 8, "DATA.IMG_SIZE", 192, "DATA.MASK", name]
    opts += ["DATA.MASK_PATCH_SIZE", 4]
    dataset = build_pretrain_dataset(get_config(None, opts), patch_size=4)
    mask = dataset[1, 3][1]
    torch.rand(3)
    assert torch.equal(dataset[1, 3][1], mask)
    others = [dataset[2, 3], dataset[1, 4]]
    others.append(build_pretrain_dataset(get_config(None, [*opts, "SEED", 1]), patch_size=4)[1, 3])
    assert not any(torch.equal(other, mask) for _, other in others)
