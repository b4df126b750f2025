"""Targets and losses: the formula, what must not matter, and half precision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.build import TARGETS
from models.objectives import (
    NormalizedPixelTarget,
    PixelTarget,
    ShrunkTarget,
    Target,
    masked_cross_entropy,
    masked_l1,
    masked_l2,
    masked_smooth_l1,
)
from models.simmim import SimMIM, resize_mask
from tests.support.golden_cases import GOLDEN, case_input
from tests.support.small_encoders import sample, small_model


def test_the_loss_is_the_mean_error_of_hidden_pixels_per_channel() -> None:
    target = torch.zeros(1, 3, 2, 2)
    prediction = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    mask = torch.tensor([[True, False], [False, True]]).view(1, 1, 2, 2)
    assert masked_l1(prediction, target, mask).item() == pytest.approx(2 * 6 / (2 + 1e-5) / 3)


def test_squared_and_smooth_errors_are_those_written_by_hand() -> None:
    """Errors 3 and 0.5 are hidden, 100 is visible."""
    prediction = torch.tensor([3.0, -0.5, 100.0]).view(1, 1, 1, 3)
    mask = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    arguments = prediction, torch.zeros(1, 1, 1, 3), mask
    hidden = 2 + 1e-5
    assert masked_l1(*arguments).item() == pytest.approx((3 + 0.5) / hidden)
    assert masked_l2(*arguments).item() == pytest.approx((9 + 0.25) / hidden)
    assert masked_smooth_l1(*arguments).item() == pytest.approx((3 - 0.5 + 0.125) / hidden)


def test_cross_entropy_is_the_mean_of_hidden_pixels_over_channels() -> None:
    """Two channels of three classes; scores ln 2, 0, 0 give shares 1/2, 1/4, 1/4."""
    scores = torch.zeros(1, 2, 3, 1, 2)
    scores[0, :, 0] = math.log(2)
    target = torch.tensor([[[[0, 2]], [[1, 2]]]])  # (1, 2, 1, 2)
    hidden = torch.tensor([True, False]).view(1, 1, 1, 2)
    loss = masked_cross_entropy(scores.flatten(1, 2), target, hidden)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / (1 + 1e-5) / 2)
    loss = masked_cross_entropy(scores.flatten(1, 2), target, torch.ones_like(hidden))
    assert loss.item() == pytest.approx(7 * math.log(2) / (2 + 1e-5) / 2)


def test_cross_entropy_of_half_precision_scores_is_computed_in_float32() -> None:
    scores = torch.randn(2, 3 * 5, 4, 4).bfloat16()
    target, mask = torch.randint(5, (2, 3, 4, 4)), torch.rand(2, 1, 4, 4) < 0.5
    loss = masked_cross_entropy(scores, target, mask)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, masked_cross_entropy(scores.float(), target, mask))


def test_a_target_shrinks_by_the_mean_and_is_drawn_at_the_image_s_size() -> None:
    image = torch.arange(16.0).view(1, 1, 2, 8)
    target = ShrunkTarget(PixelTarget(), 2)
    assert target(image).flatten().tolist() == [4.5, 6.5, 8.5, 10.5]
    assert (target.side(2), target.side(8)) == (1, 4)
    drawn = target.to_pixels(target(image), image)
    assert drawn[0, 0].tolist() == [[4.5, 4.5, 6.5, 6.5, 8.5, 8.5, 10.5, 10.5]] * 2


def test_normalized_pixels_of_a_shrunk_image_are_statistics_of_that_image() -> None:
    image = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    target = ShrunkTarget(NormalizedPixelTarget(3), 4)
    small = F.avg_pool2d(image, 4)
    assert torch.equal(target(image), NormalizedPixelTarget(3)(small))
    torch.testing.assert_close(
        target.to_pixels(target(image), image), F.interpolate(small, (16, 24))
    )


@pytest.mark.parametrize(("size", "shrink"), [(32, 3), (32, 12), ([32, 48], 32)])
def test_a_target_shrinks_by_powers_of_two_that_divide_the_image(size: Any, shrink: int) -> None:
    with pytest.raises(ValueError, match=r"TARGET_SHRINK"):
        small_model("swin", "DATA.IMG_SIZE", size, "MODEL.SIMMIM.TARGET_SHRINK", shrink)


def test_the_loss_counts_all_pixels_where_its_scope_is_all() -> None:
    model = small_model("swin", "MODEL.SIMMIM.SCOPE", "all").eval()
    image, mask = sample(model)
    expected = (model.predict(image, mask) - image).abs().mean()
    assert model(image, mask).item() == pytest.approx(expected.item(), rel=1e-6)
    model.loss_everywhere = False
    assert model(image, mask).item() != pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_ignores_visible_pixels() -> None:
    prediction, target = torch.randn(2, 2, 3, 8, 8).unbind()
    mask = torch.rand(2, 1, 8, 8) < 0.5
    changed = torch.where(mask, prediction, prediction + 100)
    assert torch.equal(masked_l1(prediction, target, mask), masked_l1(changed, target, mask))


def test_a_mask_that_hides_nothing_gives_a_loss_of_zero() -> None:
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


class Blurred:
    """A grey picture of so many pixels for one, or of a fixed side."""

    def __init__(self, shrink: int = 1, fixed: int = 0) -> None:
        self.shrink, self.fixed = shrink, fixed

    def channels(self, image_channels: int) -> int:
        return 1

    def side(self, image_side: int) -> int:
        return self.fixed or image_side // self.shrink

    def __call__(self, image: Tensor) -> Tensor:
        size = self.side(image.shape[-2]), self.side(image.shape[-1])
        return F.adaptive_avg_pool2d(image.mean(dim=1, keepdim=True), size)

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        return F.interpolate(prediction, image.shape[-2:]).expand_as(image)


def model_with(
    monkeypatch: pytest.MonkeyPatch, target: Target, *opts: Any, kind: str = "swin"
) -> SimMIM:
    monkeypatch.setitem(TARGETS, "mine", lambda cfg: target)
    model: SimMIM = small_model(kind, "MODEL.SIMMIM.TARGET", "mine", *opts)
    return model


@pytest.mark.parametrize("kind", ["swin", "vit"])
@pytest.mark.parametrize(
    ("target", "size", "found"),
    [
        (Blurred(1), (32, 32), (32, 32)),
        (Blurred(2), (32, 48), (16, 24)),
        (Blurred(4), (40, 24), (10, 6)),
        (Blurred(fixed=8), (32, 32), (8, 8)),
        (Blurred(fixed=64), (32, 32), (64, 64)),
    ],
)
def test_the_head_predicts_as_many_numbers_as_the_target_has(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    target: Blurred,
    size: tuple[int, int],
    found: tuple[int, int],
) -> None:
    model = model_with(monkeypatch, target, "DATA.IMG_SIZE", list(size), kind=kind)
    patch = model.encoder.patch_size
    image, mask = torch.randn(2, 3, *size), torch.rand(2, size[0] // patch, size[1] // patch) < 0.5
    assert model.predict(image, mask).shape == model.target(image).shape == (2, 1, *found)
    model(image, mask).backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    drawn = model.reconstruct(image, mask)
    hidden = resize_mask(mask, size).expand_as(image)
    assert drawn.shape == image.shape
    assert torch.equal(drawn[~hidden], image[~hidden])
    assert not torch.equal(drawn[hidden], image[hidden])


@pytest.mark.parametrize(
    ("target", "size", "message"),
    [
        (Blurred(fixed=4), [32, 48], r"4 x 4 pixels for DATA\.IMG_SIZE \[32, 48\].*both sides"),
        (Blurred(fixed=2), 32, r"2 x 2 pixels .* 8 x 8 of the image: expected a whole number"),
        (Blurred(fixed=5), 32, "expected a whole number"),
    ],
)
def test_a_target_whose_pixels_features_cannot_predict_is_an_error(
    monkeypatch: pytest.MonkeyPatch, target: Blurred, size: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model_with(monkeypatch, target, "DATA.IMG_SIZE", size)


def test_a_target_whose_pixels_cover_several_cells_is_an_error_unless_all_count() -> None:
    """Its pixels would be hidden where all of their cells are: the loss could be 0 for ever."""
    opts = ("DATA.MASK_PATCH_SIZE", 4, "MODEL.SIMMIM.TARGET_SHRINK", 8)
    with pytest.raises(ValueError, match="covers 8 of the image, and a cell of the mask 4"):
        small_model("swinv2", *opts)
    small_model("swinv2", *opts, "MODEL.SIMMIM.SCOPE", "all")


def test_a_target_with_other_channels_than_it_declares_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broadcast, the loss would be a number, and wrong."""
    target = Blurred(1)
    monkeypatch.setattr(target, "channels", lambda image_channels: image_channels)
    model = model_with(monkeypatch, target)
    image, mask = sample(model)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 32, 32\), its target \(2, 1, 32, 32\)"):
        model(image, mask)


def test_masks_follow_the_pixels_of_image_and_target() -> None:
    mask = torch.tensor([[[True, False], [True, True]]])
    larger = resize_mask(mask, (4, 4))
    assert torch.equal(larger[0, 0], mask[0].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(resize_mask(mask, (2, 2))[:, 0], mask)
    assert torch.equal(resize_mask(larger[:, 0], (2, 2))[:, 0], mask)
    assert resize_mask(mask, (2, 1)).flatten().tolist() == [False, True]  # all below is hidden
