"""A small version of every encoder, for the tests that run over all of them."""

from typing import Any

import torch
from torch import Tensor

from models import build_pretrain_model
from utils.config import get_config

# 32 x 32 pixels and mask cells of 8; the key of its channels is MODEL.<TYPE>.IN_CHANS.
SMALL: dict[str, list[Any]] = {
    "swin": [
        *("MODEL.TYPE", "swin", "MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [2, 2, 2]),
        *("MODEL.SWIN.NUM_HEADS", [1, 2, 4], "MODEL.SWIN.WINDOW_SIZE", 4),
        *("MODEL.SWIN.PATCH_SIZE", 2, "DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 8),
    ],
    "swinv2": [
        *("MODEL.TYPE", "swinv2", "MODEL.SWINV2.EMBED_DIM", 16, "MODEL.SWINV2.DEPTHS", [2, 2, 2]),
        *("MODEL.SWINV2.NUM_HEADS", [1, 2, 4], "MODEL.SWINV2.WINDOW_SIZE", 4),
        *("MODEL.SWINV2.PATCH_SIZE", 2, "DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 8),
        *("MODEL.SWINV2.EXTRA_NORM_EVERY", 2),
    ],
    "vit": [
        *("MODEL.TYPE", "vit", "MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 3),
        *("MODEL.VIT.NUM_HEADS", 2, "MODEL.VIT.PATCH_SIZE", 4),
        *("DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 8),
    ],
    "resnet": [
        *("MODEL.TYPE", "resnet", "MODEL.RESNET.LAYERS", [2, 1, 1]),
        *("DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 8),
    ],
    "convnext": [
        *("MODEL.TYPE", "convnext", "MODEL.CONVNEXT.DEPTHS", [2, 1, 1]),
        *("MODEL.CONVNEXT.DIMS", [16, 24, 32], "MODEL.CONVNEXT.INIT_VALUES", 1.0),
        *("DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 8),
    ],
}

OURS = ("swin", "swinv2", "vit", "resnet", "convnext")  # whose inner names and parts tests know


def small_model(kind: str, *opts: Any) -> Any:
    torch.manual_seed(0)
    return build_pretrain_model(get_config(None, [*SMALL[kind], *opts]))


def sample(model: Any, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, model.encoder.in_chans, 32, 32, generator=generator)
    cells = torch.rand(batch, 4, 4, generator=generator) < 0.5
    scale = 8 // model.encoder.patch_size
    return image, cells.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
