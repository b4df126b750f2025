"""Colours as classes: bins of each channel, or clusters of colours (section 4.1.3)."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor, nn

from utils.messages import reason_of, shown

CENTRES = "centres"  # name of the tensor in a codebook's file
_RGB = 3
_LARGEST_FILE = 2**22  # bytes, more than 65,536 centres of 64-bit numbers take


class Colors(nn.Module):
    """Colours from 0 to 1 of normalized images, and back; `mean` and `std` are DATA's."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalized (B, C, H, W) -> the numbers before normalization."""
        return image * self.std + self.mean

    def normalized(self, colors: Tensor) -> Tensor:
        """Undo `forward`."""
        return (colors - self.mean) / self.std


class ColorBins(nn.Module):
    """In which of `number` equal parts of 0 to 1 each number of an image lies.

    That is before normalization. Numbers below 0 count as 0, those above 1 as 1.
    """

    not_drawn = ""

    def __init__(self, number: int, colors: Colors) -> None:
        super().__init__()
        self.num_classes, self.colors = number, colors

    def channels(self, image_channels: int) -> int:
        """One score for each bin of each channel."""
        return image_channels * self.num_classes

    def side(self, image_side: int) -> int:
        """Side of the image."""
        return image_side

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> bins, integers of the same shape."""
        # A bin begins with its lowest number, which normalization may have rounded down: the small
        # addition, in bins, is above such an error.
        bins = (self.colors(image) * self.num_classes + 1e-4).floor()
        return bins.clamp(0, self.num_classes - 1).long()

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Centres of the likeliest bins."""
        bins = prediction.unflatten(1, (image.shape[1], self.num_classes)).argmax(dim=2)
        return self.colors.normalized((bins + 0.5) / self.num_classes)


class ColorClusters(nn.Module):
    """Which of K colours is nearest to each pixel; `centres` (K, 3), RGB from 0 to 1."""

    not_drawn = ""

    def __init__(self, centres: np.ndarray, colors: Colors) -> None:
        super().__init__()
        self.num_classes, self.colors = len(centres), colors
        self.centres: Tensor
        self.register_buffer("centres", torch.tensor(centres), persistent=False)

    def channels(self, image_channels: int) -> int:
        """One score for each cluster; ValueError unless images are RGB."""
        if image_channels != _RGB:
            raise ValueError(
                "MODEL.SIMMIM.TARGET color_clusters is for images of 3 channels, RGB, and those "
                f"of the encoder have {image_channels} (IN_CHANS)"
            )
        return self.num_classes

    def side(self, image_side: int) -> int:
        """Side of the image."""
        return image_side

    @torch.compiler.disable  # which would write out the loop over images
    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> clusters, integers (B, 1, H, W)."""
        pixels = self.colors(image).flatten(2).transpose(1, 2)  # (B, L, 3)
        # One image after the other: distances take K numbers a pixel. Without matrix products,
        # which autocast and TF32 would round.
        exact = "donot_use_mm_for_euclid_dist"
        nearest = [
            torch.cdist(colors, self.centres, compute_mode=exact).argmin(1) for colors in pixels
        ]
        return torch.stack(nearest).unflatten(1, (1, *image.shape[-2:]))

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Colours of the likeliest clusters."""
        colors = self.centres[prediction.argmax(dim=1)]  # (B, H, W, 3)
        return self.colors.normalized(colors.movedim(3, 1))


def read_codebook(path: str | Path, number: int) -> np.ndarray:
    """The centres in a safetensors file, float32 (number, 3); ValueError where it has no such."""
    key = "MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK"
    remedy = "(python -m tools.color_clusters writes one)"
    if not str(path):
        raise ValueError(f"MODEL.SIMMIM.TARGET color_clusters needs {key}, a file {remedy}")
    try:
        if (size := os.path.getsize(path)) > _LARGEST_FILE:
            raise ValueError(f"it has {size} bytes, no codebook has more than {_LARGEST_FILE}")
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = reason_of(error)
        raise ValueError(f"{key} {shown(str(path))} cannot be read: {reason} {remedy}") from None
    centres = tensors.get(CENTRES)
    if (
        centres is None
        or centres.ndim != 2
        or centres.shape[1] != _RGB
        or centres.dtype.kind != "f"
    ):
        found = {name: f"{tensor.dtype} {tensor.shape}" for name, tensor in tensors.items()}
        raise ValueError(
            f"{key} {shown(str(path))} holds {shown(found)}, expected `{CENTRES}`, real numbers "
            f"(K, {_RGB}) {remedy}"
        )
    if len(centres) != number:
        raise ValueError(
            f"{key} {shown(str(path))} has {len(centres)} centre(s), expected {number} by "
            "MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER"
        )
    if not ((centres >= 0) & (centres <= 1)).all():
        raise ValueError(
            f"{key} {shown(str(path))} has centres from {centres.min():g} to {centres.max():g}, "
            "expected colours from 0 to 1"
        )
    return centres.astype(np.float32)
