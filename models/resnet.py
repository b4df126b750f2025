"""ResNet (arXiv 1512.03385) of timm's blocks, with SimMIM's stem and mask token (section 4.3)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.models.resnet import Bottleneck, downsample_conv
from torch import nn

from models.conv_hierarchy import ConvHierarchy, ConvStage, require_stages
from models.layers import drop_path, drop_path_rates

_WIDTH = 64  # channels of the stem and of the first stage's 3 x 3 convolutions
_STRIDE = 4  # of the stem


class ResNet(ConvHierarchy):
    """A ResNet of bottlenecks, `width` times as wide; further arguments go to `ConvHierarchy`.

    The stem is a 3 x 3 convolution of stride 2 and a 2 x 2 max-pool, so each of its cells sees one
    row and one column of pixels of the cells above and left of it.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 1,
        hide_pixels: bool = True,
        drop_path_rate: float = 0.0,
        **hierarchy: Any,
    ) -> None:
        section = "MODEL.RESNET"
        stride_name = f"the stride of {section}'s stem"
        require_stages(layers, f"{section}.LAYERS", image_size, _STRIDE, stride_name)
        features = stem_features = _WIDTH * width
        stem = OrderedDict(
            proj=nn.Conv2d(in_chans, features, 3, stride=2, padding=1, bias=False),
            norm=nn.BatchNorm2d(features),
            act=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
        )
        rates, stages = iter(drop_path_rates(drop_path_rate, sum(layers))), []
        for stage, depth in enumerate(layers):
            planes, blocks = stem_features * 2**stage, []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                shortcut = None
                if not block:  # it changes the width
                    shortcut = downsample_conv(features, 4 * planes, 1, stride)
                blocks.append(
                    Bottleneck(features, planes, stride, shortcut, drop_path=drop_path(next(rates)))
                )
                features = 4 * planes
            stages.append(ConvStage(blocks))
        super().__init__(
            section,
            nn.Sequential(stem),
            stages,
            nn.Identity(),
            stem_features=stem_features,
            num_features=features,
            in_chans=in_chans,
            patch_size=_STRIDE,
            image_size=image_size,
            hide_pixels=hide_pixels,
            **hierarchy,
        )
        self.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    """Initialize convolutions by He's rule; each block starts as its shortcut (1706.02677)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, Bottleneck):
        module.zero_init_last()
