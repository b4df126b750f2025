"""Prediction targets and losses (section 3.4)."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# (prediction, target, mask) -> scalar; prediction and target have the target's shape
# (B, C, H, W), the mask is bool (B, 1, H, W), True = hidden.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Target(Protocol):
    """A prediction target; its channels and sides determine the size of the head."""

    def channels(self, image_channels: int) -> int:
        """Channels of the target for images of `image_channels`."""

    def side(self, image_side: int) -> int:
        """Pixels of the target along an image side of `image_side` pixels."""

    def __call__(self, image: Tensor) -> Tensor:
        """Normalized images (B, C, H, W) -> (B, channels(C), side(H), side(W))."""

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Convert a prediction to a normalized image of the same shape as `image`, for display."""


class PixelTarget:
    """The normalized input image itself."""

    def channels(self, image_channels: int) -> int:
        """Channels of the image."""
        return image_channels

    def side(self, image_side: int) -> int:
        """Side of the image."""
        return image_side

    def __call__(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return image

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Return the prediction, which is an image already."""
        return prediction


class NormalizedPixelTarget(PixelTarget):
    """Pixels normalized by mean and standard deviation of a window centred on each (V2 paper).

    Statistics are per channel, `patch_size` is odd, and pixels outside the image do not count.
    """

    def __init__(self, patch_size: int) -> None:
        if patch_size < 1 or patch_size % 2 == 0:
            raise ValueError(
                f"MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE is {patch_size}, expected an odd number"
            )
        self.patch_size = patch_size

    def __call__(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mean, deviation = self._statistics(image)
        return (image - mean) / deviation

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Convert a prediction to an image by the statistics of `image`."""
        mean, deviation = self._statistics(image)
        return prediction * deviation + mean

    def _statistics(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Window mean and square root of (unbiased variance + 1e-6), each (B, C, H, W)."""
        means = self._window_mean(torch.cat((image, image.square()), dim=1))
        mean, mean_square = means.chunk(2, dim=1)
        rows, columns = (self._window_counts(side, image.device) for side in image.shape[-2:])
        count = rows[:, None] * columns
        biased = mean_square - mean.square()
        variance = (biased * count / (count - 1).clamp(min=1)).clamp(min=0)
        return mean, (variance + 1e-6).sqrt()

    def _window_mean(self, image: Tensor) -> Tensor:
        """The mean of the columns' means: 2 patch_size numbers a pixel, not patch_size squared."""
        side, reach = self.patch_size, self.patch_size // 2
        columns = F.avg_pool2d(image, (side, 1), 1, (reach, 0), count_include_pad=False)
        return F.avg_pool2d(columns, (1, side), 1, (0, reach), count_include_pad=False)

    def _window_counts(self, length: int, device: torch.device) -> Tensor:
        """How many of `length` pixels along an axis lie in the window around each: (length,)."""
        place, reach = torch.arange(length, device=device), self.patch_size // 2
        return (place + reach).clamp(max=length - 1) - (place - reach).clamp(min=0) + 1


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over hidden pixels, in the target's precision.

    `prediction` and `target` (B, C, H, W), `mask` (B, 1, H, W) bool, True = hidden; a scalar:
    sum(|target - prediction| * mask) / (sum(mask) + 1e-5) / C.
    """
    error = (target - prediction.to(target.dtype)).abs() * mask
    return error.sum() / (mask.sum(dtype=target.dtype) + 1e-5) / target.shape[1]
