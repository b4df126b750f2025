"""AvgDist: the definition, by brute force, and the values of the paper's figure."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.mask_distance import average_distance
from data.masking import MASKS

# AvgDist in the paper's figure, of images of 192 pixels and patches of 4: ratio -> pixels.
PUBLISHED = {
    ("random", 32): {
        0.1: 9.26,
        0.3: 11.23,
        0.5: 14.69,
        0.6: 17.35,
        0.7: 21.6,
        0.8: 30.0,
        0.9: 47.3,
    },
    ("random", 16): {0.4: 6.98, 0.6: 9.14, 0.8: 14.4},
    ("block", 16): {0.4: 18.6, 0.6: 25.1, 0.8: 35.9},
    ("block", 32): {0.4: 22.3, 0.6: 31.7, 0.8: 45.2},
    ("square", 32): {4 / 36: 15.6, 9 / 36: 24.1, 16 / 36: 34.8},
}


def brute_force(hidden: Tensor, spacing: int) -> float:
    """The mean over hidden entries of the smallest distance to a visible one."""
    return (
        torch.cdist(hidden.nonzero().double(), (~hidden).nonzero().double()).amin(1).mean().item()
        * spacing
    )


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("size", [64, (32, 96)])
def test_average_distance_is_that_of_a_search_through_all_pairs(name: str, size: Any) -> None:
    torch.manual_seed(0)
    mask = MASKS[name](size, 8, 4, 0.5)()
    pixels = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    expected = brute_force(mask, 4), brute_force(pixels, 1)
    assert average_distance(mask, 4) == pytest.approx(expected, rel=1e-6)


def test_one_hidden_patch_of_four_pixels() -> None:
    """Its neighbours' centres are 4 pixels away; 12 of its pixels touch them, 4 are one deeper."""
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1, 1] = True
    assert average_distance(mask, 4) == (4.0, (12 * 1 + 4 * 2) / 16)


@pytest.mark.parametrize("hidden", [True, False])
def test_a_mask_that_hides_nothing_or_everything_has_no_average_distance(hidden: bool) -> None:
    with pytest.raises(ValueError, match=f"not with {4 * hidden} of 4 hidden"):
        average_distance(torch.full((2, 2), hidden), 4)


@pytest.mark.parametrize(("name", "cell"), PUBLISHED)
def test_distances_between_patch_centres_are_those_of_the_papers_figure(
    name: str, cell: int
) -> None:
    for ratio, published in PUBLISHED[name, cell].items():
        torch.manual_seed(0)
        mask = MASKS[name](192, cell, 4, ratio)
        # Patches as pixels of size 1: only the distances between centres are of interest here.
        drawn = [4 * average_distance(mask(), 1)[0] for _ in range(500)]
        assert np.mean(drawn) == pytest.approx(published, rel=0.1), ratio
