"""Heads that predict the target from the encoder's last feature map (sections 3.3, 4.1.2).

A head is built from (features, pixels of the target along a feature's side, numbers to predict for
each of these pixels, rows and columns of the feature map); the last are for heads with windows.
"""

import torch
from torch import nn

from models.windows import Grid


def linear_decoder(num_features: int, stride: int, out_chans: int, grid: Grid) -> nn.Sequential:
    """One linear layer per position: (B, num_features, h, w) -> (B, out_chans, h*stride, ...)."""
    return nn.Sequential(pointwise(num_features, out_chans * stride**2), nn.PixelShuffle(stride))


def mlp_decoder(num_features: int, stride: int, out_chans: int, grid: Grid) -> nn.Sequential:
    """Two linear layers per position, the first as wide as the features."""
    hidden, project = (pointwise(num_features, w) for w in (num_features, out_chans * stride**2))
    return nn.Sequential(hidden, nn.GELU(), project, nn.PixelShuffle(stride))


def pointwise(width: int, out_width: int) -> nn.Conv2d:
    """A linear layer for each position."""
    layer = nn.Conv2d(width, out_width, kernel_size=1)
    # Features are channels-last, and so are the gradients of these weights.
    weight = layer.weight.detach().clone(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight)
    return layer
