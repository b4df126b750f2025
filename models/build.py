"""From the configuration to models; the only file here that reads it."""

from collections.abc import Callable
from typing import Any

from torch import nn
from yacs.config import CfgNode

from models.decoders import linear_decoder
from models.objectives import NormalizedPixelTarget, PixelTarget, masked_l1
from models.simmim import Loss, SimMIM
from models.swin_transformer import SwinTransformer
from models.swin_transformer_v2 import SwinTransformerV2
from models.vision_transformer import VisionTransformer
from utils.checks import choose


def _arguments(section: CfgNode) -> dict[str, Any]:
    """Keys of an encoder's section as arguments of its constructor: EMBED_DIM -> embed_dim."""
    return {key.lower(): value for key, value in section.items()}


def _swin(cfg: CfgNode, **shared: Any) -> SwinTransformer:
    return SwinTransformer(**_arguments(cfg.MODEL.SWIN), **shared)


def _swinv2(cfg: CfgNode, **shared: Any) -> SwinTransformerV2:
    return SwinTransformerV2(**_arguments(cfg.MODEL.SWINV2), **shared)


def _vit(cfg: CfgNode, **shared: Any) -> VisionTransformer:
    # Pre-training cuts initial weights at one standard deviation, fine-tuning practically not.
    init_cut = 0.02 if shared["use_mask_token"] else 2.0
    return VisionTransformer(**_arguments(cfg.MODEL.VIT), **shared, init_cut=init_cut)


ENCODERS: dict[str, Callable[..., Any]] = {"swin": _swin, "swinv2": _swinv2, "vit": _vit}
DECODERS: dict[str, Callable[[int, int, int], nn.Module]] = {"linear": linear_decoder}
TARGETS: dict[str, Callable[[CfgNode], nn.Module]] = {
    "pixels": lambda cfg: PixelTarget(),
    "normalized_pixels": lambda cfg: NormalizedPixelTarget(cfg.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE),
}
LOSSES: dict[str, Loss] = {"l1": masked_l1}


def build_encoder(cfg: CfgNode, *, num_classes: int = 0, use_mask_token: bool = False) -> Any:
    """The encoder MODEL.TYPE names; ValueError where it is unknown or its sizes do not fit."""
    return choose(ENCODERS, cfg.MODEL.TYPE, "MODEL.TYPE")(
        cfg,
        image_size=cfg.DATA.IMG_SIZE,
        drop_rate=cfg.MODEL.DROP_RATE,
        drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
        num_classes=num_classes,
        use_mask_token=use_mask_token,
        use_checkpoint=cfg.TRAIN.USE_CHECKPOINT,
    )


def build_pretrain_model(cfg: CfgNode) -> SimMIM:
    """Encoder with mask token, decoder, target and loss."""
    keys = cfg.MODEL.SIMMIM
    target = choose(TARGETS, keys.TARGET, "MODEL.SIMMIM.TARGET")
    if keys.NORM_TARGET.ENABLE:
        target = TARGETS["normalized_pixels"]
    decoder = choose(DECODERS, keys.DECODER, "MODEL.SIMMIM.DECODER")
    loss = choose(LOSSES, keys.LOSS, "MODEL.SIMMIM.LOSS")
    encoder = build_encoder(cfg, use_mask_token=True)
    head = decoder(encoder.num_features, encoder.stride, encoder.in_chans)
    return SimMIM(encoder, head, target(cfg), loss)


def build_classifier(cfg: CfgNode, num_classes: int) -> nn.Module:
    """The encoder with a linear classification head."""
    classifier: nn.Module = build_encoder(cfg, num_classes=num_classes)
    return classifier


def build_criterion(cfg: CfgNode, *, soft_targets: bool) -> nn.Module:
    """Cross entropy of logits and targets; Mixup has already smoothed soft ones."""
    return nn.CrossEntropyLoss(label_smoothing=0.0 if soft_targets else cfg.MODEL.LABEL_SMOOTHING)
