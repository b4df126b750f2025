"""SimMIM: hide patches, encode the image, predict the hidden pixels (arXiv 2111.09886)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.objectives import Loss, Target, num_classes_of, why_not_drawn


class Encoder(Protocol):
    """Interface of an encoder, an nn.Module, to SimMIM, data, optimizer and checkpoint loading.

    The constructor takes keywords: the keys of the encoder's section of MODEL in lower case
    (EMBED_DIM -> embed_dim; IN_CHANS is required, since the data are read by it as well),
    `image_size` (a side or (height, width)), `drop_rate`, `drop_path_rate`, `num_classes` (0: no
    head), `use_mask_token` and `use_checkpoint` (recompute activations). An encoder is first
    constructed on the meta device, to count its weights; one that needs values is not counted.

    Optional members:
    `forward(image)` returns logits, for fine-tuning;
    `blocks` lists its blocks in order, for TRAIN.SHARDING and TRAIN.COMPILE blocks;
    `adapt_weights(weights, content)` adapts weights of a checkpoint's content to the encoder's
    sizes, in place, and returns `models.origin.Adapted`;
    `rename_weights(weights)` returns weights of older files under current names.
    """

    in_chans: int
    patch_size: int
    stride: int
    num_features: int
    num_layers: int

    def forward_features(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), mask (B, H/patch, W/patch) -> (B, num_features, H/stride, W/stride).

        H/stride and W/stride are rounded up.
        """

    def layer_of(self, name: str) -> int:
        """Layer id of a parameter for layer-wise decay, 0 to num_layers + 1."""

    def no_weight_decay(self, name: str) -> bool:
        """Whether a parameter is excluded from weight decay."""


class SimMIM(nn.Module):
    """Masked image modelling with an encoder, a decoder, a target and a loss.

    The loss counts hidden pixels only, or all with `loss_everywhere` (table 4's scopes).
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: nn.Module,
        target: Target,
        loss: Loss,
        *,
        loss_everywhere: bool = False,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target = target
        self.loss = loss
        self.loss_everywhere = loss_everywhere

    @property
    def not_drawn(self) -> str:
        """Why `reconstruct` is refused for this target; empty where it is not."""
        return why_not_drawn(self.target)

    def predict(self, image: Tensor, mask: Tensor) -> Tensor:
        """Predict the target from the visible patches: (B, C, H, W), in the target's sizes."""
        features = self.encoder.forward_features(image, mask)
        prediction: Tensor = self.decoder(features)  # larger, where the stride does not divide
        height, width = map(self.target.side, image.shape[-2:])
        return prediction[..., :height, :width]

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Loss of normalized images (B, C, H, W); mask (B, H/p, W/p) bool, True = hidden."""
        prediction, target = self.predict(image, mask), self.target(image)
        batch, channels, *size = target.shape
        scores = num_classes_of(self.target) or 1  # that are predicted for a number of the target
        if prediction.shape != (batch, channels * scores, *size):  # a loss might broadcast them
            of_classes = f" of {scores} classes" if scores > 1 else ""
            raise ValueError(
                f"the prediction has shape {tuple(prediction.shape)}, its target "
                f"{tuple(target.shape)}{of_classes}: head and target (channels, side) do not fit"
            )
        counted = resize_mask(mask, size)
        if self.loss_everywhere:
            counted = torch.ones_like(counted)
        return self.loss(prediction, target, counted)

    @torch.no_grad()
    def reconstruct(self, image: Tensor, mask: Tensor) -> Tensor:
        """The image with hidden pixels replaced by the prediction, normalized like the input.

        ValueError for a target that is no picture (`not_drawn`).
        """
        if self.not_drawn:
            raise ValueError(self.not_drawn)
        prediction = self.predict(image, mask).to(image.dtype)
        pixels = self.target.to_pixels(prediction, image)
        return torch.where(resize_mask(mask, image.shape[-2:]), pixels, image)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a mask from patches to pixels of an image or a target: (B, h, w) -> (B, 1, *size).

    A pixel that covers several patches is hidden where all of them are.
    """
    visible = (~mask).float().unsqueeze(1)
    return F.adaptive_max_pool2d(visible, tuple(size)) == 0
