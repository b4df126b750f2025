"""Targets and losses: the formula, what must not matter, and half precision."""

import numpy as np
import pytest
import torch

from models.objectives import NormalizedPixelTarget, PixelTarget, masked_l1
from tests.golden_cases import GOLDEN, case_input


def test_the_loss_is_the_mean_error_of_hidden_pixels_per_channel() -> None:
    target = torch.zeros(1, 3, 2, 2)
    prediction = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    mask = torch.tensor([[True, False], [False, True]]).view(1, 1, 2, 2)
    assert masked_l1(prediction, target, mask).item() == pytest.approx(2 * 6 / (2 + 1e-5) / 3)


def test_the_loss_ignores_visible_pixels() -> None:
    prediction, target = torch.randn(2, 2, 3, 8, 8).unbind()
    mask = torch.rand(2, 1, 8, 8) < 0.5
    changed = torch.where(mask, prediction, prediction + 100)
    assert torch.equal(masked_l1(prediction, target, mask), masked_l1(changed, target, mask))


def test_nothing_hidden_is_no_error_and_no_division_by_zero() -> None:
    image = torch.randn(1, 3, 4, 4)
    assert masked_l1(image, image + 1, torch.zeros(1, 1, 4, 4, dtype=torch.bool)) == 0


def test_the_loss_of_half_precision_predictions_is_summed_in_float32() -> None:
    """In float16 the sum over this many pixels would overflow."""
    prediction = torch.full((4, 3, 192, 192), 2.0, dtype=torch.float16)
    mask = torch.ones(4, 1, 192, 192, dtype=torch.bool)
    loss = masked_l1(prediction, torch.zeros(4, 3, 192, 192), mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("size", [3, 47])
def test_normalized_targets_are_local_statistics(size: int) -> None:
    image = torch.randn(1, 1, 20, 20, dtype=torch.float64)
    normalized = NormalizedPixelTarget(size)(image)
    for row, column in ((0, 0), (10, 7), (19, 3)):
        half = size // 2
        window = image[0, 0, max(row - half, 0) : row + half + 1]
        window = window[:, max(column - half, 0) : column + half + 1]
        expected = (image[0, 0, row, column] - window.mean()) / (window.var() + 1e-6).sqrt()
        assert normalized[0, 0, row, column].item() == pytest.approx(expected.item(), rel=1e-9)


def test_normalized_targets_agree_with_the_reference() -> None:
    golden = np.load(GOLDEN / "normalized_target.npz")
    image, _ = case_input(
        "swinv2_pretrain_norm_target", 2, int(golden["size"]), 32, 4, torch.float64
    )
    normalized = NormalizedPixelTarget(int(golden["patch_size"]))(image)[:, :, ::7, ::5]
    np.testing.assert_allclose(normalized.numpy(), golden["normalized_target"], rtol=1e-7)


@pytest.mark.parametrize("target", [PixelTarget(), NormalizedPixelTarget(5)])
def test_a_perfect_prediction_gives_the_image_back(
    target: PixelTarget | NormalizedPixelTarget,
) -> None:
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(target.to_pixels(target(image), image), image)


def test_an_even_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="odd"):
        NormalizedPixelTarget(46)
