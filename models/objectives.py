"""Prediction targets and losses (sections 3.4, 4.1.3)."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# (prediction, target, mask) -> scalar; prediction and target have the target's shape
# (B, C, H, W), the mask is bool (B, 1, H, W), True = where the loss counts. Of a target of classes
# the prediction has num_classes channels for each of the target's.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Target(Protocol):
    """A prediction target; its channels and sides determine the size of the head.

    Optional members:
    `num_classes` is the number of classes K of a target of integers from 0 to K - 1, whose
    prediction has K scores for each of them;
    `not_drawn` tells why predictions are never drawn: then `to_pixels` is not called.
    """

    def channels(self, image_channels: int) -> int:
        """Channels of the prediction for images of `image_channels`."""

    def side(self, image_side: int) -> int:
        """Pixels of the target along an image side of `image_side` pixels."""

    def __call__(self, image: Tensor) -> Tensor:
        """Normalized images (B, C, H, W) -> (B, channels(C), side(H), side(W)).

        Of a target of classes, integers (B, channels(C) / num_classes, side(H), side(W)).
        """

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


class ShrunkTarget(nn.Module):
    """A target of the image shrunk by `shrink`, by the mean of each `shrink` x `shrink` pixels.

    The sides of the image are multiples of `shrink`.
    """

    def __init__(self, target: Target, shrink: int) -> None:
        super().__init__()
        self.target, self.shrink = target, shrink
        self.num_classes = num_classes_of(target)
        self.not_drawn = why_not_drawn(target)

    def channels(self, image_channels: int) -> int:
        """Channels of the prediction."""
        return self.target.channels(image_channels)

    def side(self, image_side: int) -> int:
        """Side of the target of the shrunk image."""
        return self.target.side(image_side // self.shrink)

    def forward(self, image: Tensor) -> Tensor:
        """Shrink images (B, C, H, W), and compute their target."""
        return self.target(F.avg_pool2d(image, self.shrink))

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Convert a prediction to a small image, and enlarge it to squares of one colour."""
        small = self.target.to_pixels(prediction, F.avg_pool2d(image, self.shrink))
        return F.interpolate(small, image.shape[-2:])


def num_classes_of(target: Target) -> int:
    """Classes of a target of integers; 0 of one of real numbers."""
    return int(getattr(target, "num_classes", 0))


def why_not_drawn(target: Target) -> str:
    """Why predictions of a target cannot be drawn; empty where they can."""
    return str(getattr(target, "not_drawn", ""))


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of an error (B, C, H, W) where `mask` (B, 1, H, W) is True, a scalar.

    sum(error * mask) / (sum(mask) + 1e-5) / C.
    """
    return (error * mask).sum() / (mask.sum(dtype=error.dtype) + 1e-5) / error.shape[1]


def masked_error(
    error: Callable[..., Tensor], prediction: Tensor, target: Tensor, mask: Tensor
) -> Tensor:
    """Masked mean of a symmetric elementwise error, in the target's precision.

    A `Loss` once `error`, a function of torch such as `l1_loss`, is given.
    """
    # The error has the layout of the first, on which the last digit of its sum depends.
    return masked_mean(error(target, prediction.to(target.dtype), reduction="none"), mask)


masked_l1: Loss = partial(masked_error, F.l1_loss)
masked_l2: Loss = partial(masked_error, F.mse_loss)
masked_smooth_l1: Loss = partial(masked_error, partial(F.smooth_l1_loss, beta=1.0))


def masked_cross_entropy(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Masked mean of the cross entropy of classes, in float32 or wider.

    `prediction` (B, C * K, H, W) holds the scores of each channel's K classes, `target`
    (B, C, H, W) integers from 0 to K - 1.
    """
    scores = prediction.unflatten(1, (target.shape[1], -1)).movedim(2, -1)  # (B, C, H, W, K)
    scores = scores.flatten(0, 3).to(torch.promote_types(prediction.dtype, torch.float32))
    # Of a list of scores, not of images of scores: that is deterministic on GPUs, too.
    error = F.cross_entropy(scores, target.flatten(), reduction="none")
    return masked_mean(error.view_as(target), mask)
