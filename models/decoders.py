"""Heads that predict pixels from the encoder's last feature map (section 3.3)."""

import torch
from torch import nn


def linear_decoder(num_features: int, stride: int, out_chans: int) -> nn.Sequential:
    """One linear layer per position: (B, num_features, h, w) -> (B, out_chans, h*stride, ...)."""
    project = nn.Conv2d(num_features, out_chans * stride**2, kernel_size=1)
    # Features are channels-last, and so are the gradients of these weights.
    weight = project.weight.detach().clone(memory_format=torch.channels_last)
    project.weight = nn.Parameter(weight)
    return nn.Sequential(project, nn.PixelShuffle(stride))
