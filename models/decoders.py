"""Heads that predict pixels from the encoder's last feature map (section 3.3)."""

from torch import nn


def linear_decoder(num_features: int, stride: int, out_chans: int) -> nn.Sequential:
    """One linear layer per position: (B, num_features, h, w) -> (B, out_chans, h*stride, ...)."""
    return nn.Sequential(
        nn.Conv2d(num_features, out_chans * stride**2, kernel_size=1),
        nn.PixelShuffle(stride),
    )
