"""AvgDist of a mask: how far hidden pixels are from visible ones."""

import numpy as np
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def average_distance(mask: Tensor, patch_size: int) -> tuple[float, float]:
    """AvgDist of a mask: the mean distance of hidden pixels to the nearest visible one, in pixels.

    Section 4.1.2 of SimMIM. `mask` is bool (height, width), one entry for each patch, True =
    hidden. Distances are Euclidean. The first number takes them between the centres of patches,
    which reproduces the paper's figure; the second between the centres of pixels.
    ValueError where nothing is hidden or nothing visible.
    """
    hidden = mask.numpy()
    if hidden.all() or not hidden.any():
        raise ValueError(
            f"AvgDist is for masks with hidden and visible patches, not with {int(hidden.sum())} "
            f"of {hidden.size} hidden"
        )
    pixels = np.kron(hidden, np.ones((patch_size, patch_size), dtype=bool))
    return patch_size * _mean_distance(hidden), _mean_distance(pixels)


def _mean_distance(hidden: np.ndarray) -> float:
    """Mean distance of the hidden entries to the nearest visible one, in entries."""
    return float(distance_transform_edt(hidden)[hidden].mean())
