"""SimMIM: hide patches, encode what is left, predict the hidden pixels (arXiv 2111.09886)."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Encoder(Protocol):
    """What SimMIM, the optimizer and loading ask of an encoder."""

    in_chans: int
    patch_size: int
    stride: int
    num_features: int
    num_layers: int
    blocks: Iterable[nn.Module]

    def forward_features(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), mask (B, H/patch, W/patch) -> (B, num_features, H/stride, W/stride).

        Sizes that the stride does not divide are rounded up.
        """

    def layer_of(self, name: str) -> int:
        """Layer id of a parameter for layer-wise decay, 0 to num_layers + 1."""

    def no_weight_decay(self, name: str) -> bool:
        """True where the parameter is not to decay."""


class SimMIM(nn.Module):
    """Masked image modelling with one of each: encoder, decoder, target, loss."""

    def __init__(self, encoder: Encoder, decoder: nn.Module, target: nn.Module, loss: Loss):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target = target
        self.loss = loss

    def predict(self, image: Tensor, mask: Tensor) -> Tensor:
        """Predict the target from what is visible: (B, C, H, W)."""
        features = self.encoder.forward_features(image, mask)
        prediction: Tensor = self.decoder(features)  # larger, where the stride does not divide
        return prediction[..., : image.shape[-2], : image.shape[-1]]

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Loss of normalized images (B, C, H, W); mask (B, H/p, W/p) bool, True = hidden."""
        pixel_mask = upsample_mask(mask, image.shape[-1])
        return self.loss(self.predict(image, mask), self.target(image), pixel_mask)

    @torch.no_grad()
    def reconstruct(self, image: Tensor, mask: Tensor) -> Tensor:
        """The image, its hidden pixels replaced by the prediction; normalized like the input."""
        prediction = self.predict(image, mask).to(image.dtype)
        pixels: Tensor = self.target.to_pixels(prediction, image)  # type: ignore[operator]  # a module's method
        return torch.where(upsample_mask(mask, image.shape[-1]), pixels, image)


def upsample_mask(mask: Tensor, image_width: int) -> Tensor:
    """Patches to pixels: (B, h, w) -> (B, 1, H, image_width)."""
    scale = image_width // mask.shape[-1]
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2).unsqueeze(1)
