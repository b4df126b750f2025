"""ConvNeXt (arXiv 2201.03545) of timm's blocks, with the mask token of SimMIM as an option."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d, trunc_normal_
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn import functional as F

from models.conv_hierarchy import ConvHierarchy, ConvStage, require_stages
from models.layers import drop_path_rates
from utils.messages import shown


class Halving(nn.Conv2d):
    """A 2 x 2 convolution of stride 2, to which zeros are added where a side is odd."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h / 2, w / 2), rounded up."""
        height, width = features.shape[-2:]
        return super().forward(F.pad(features, (0, width % 2, 0, height % 2)))


class ConvNeXt(ConvHierarchy):
    """ConvNeXt, with the last norm before the mean; further arguments go to `ConvHierarchy`."""

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        init_values: float | None = 1e-6,
        drop_path_rate: float = 0.0,
        **hierarchy: Any,
    ) -> None:
        if len(depths) != len(dims):
            raise ValueError(
                f"MODEL.CONVNEXT: DEPTHS {shown(list(depths))} and DIMS {shown(list(dims))} "
                "differ in length"
            )
        section = "MODEL.CONVNEXT"
        require_stages(depths, f"{section}.DEPTHS", image_size, patch_size, f"{section}.PATCH_SIZE")
        # Patches do not overlap and the norm is that of a position: no hidden pixel gets out.
        project = nn.Conv2d(in_chans, dims[0], kernel_size=patch_size, stride=patch_size)
        stem = nn.Sequential(OrderedDict(proj=project, norm=LayerNorm2d(dims[0])))
        rates, stages = iter(drop_path_rates(drop_path_rate, sum(depths))), []
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = [
                ConvNeXtBlock(dim, drop_path=next(rates), ls_init_value=init_values)
                for _ in range(depth)
            ]
            halving = (LayerNorm2d(dims[stage - 1]), Halving(dims[stage - 1], dim, 2, stride=2))
            stages.append(ConvStage(blocks, nn.Sequential(*halving) if stage else None))
        super().__init__(
            section,
            stem,
            stages,
            LayerNorm2d(dims[-1]),
            stem_features=dims[0],
            num_features=dims[-1],
            in_chans=in_chans,
            patch_size=patch_size,
            image_size=image_size,
            **hierarchy,
        )
        self.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    """Initialize convolutions and linear layers: normal of std 0.02, bias 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ConvNeXtBlock):
        # Its features are channels-last, and so are the gradients of these weights.
        weight = module.conv_dw.weight.detach().clone(memory_format=torch.channels_last)
        module.conv_dw.weight = nn.Parameter(weight)
