"""From the configuration to models; the only file here that reads it."""

from collections.abc import Callable
from typing import Any

from torch import nn
from yacs.config import CfgNode

from models.decoders import linear_decoder
from models.objectives import NormalizedPixelTarget, PixelTarget, masked_l1
from models.simmim import Loss, SimMIM
from models.swin_transformer import SwinTransformer
from models.vision_transformer import VisionTransformer
from utils.checks import choose


def _swin(cfg: CfgNode, **arguments: Any) -> SwinTransformer:
    keys = cfg.MODEL.SWIN
    return SwinTransformer(
        patch_size=keys.PATCH_SIZE,
        in_chans=keys.IN_CHANS,
        embed_dim=keys.EMBED_DIM,
        depths=keys.DEPTHS,
        num_heads=keys.NUM_HEADS,
        window_size=keys.WINDOW_SIZE,
        mlp_ratio=keys.MLP_RATIO,
        qkv_bias=keys.QKV_BIAS,
        qk_scale=keys.QK_SCALE,
        absolute_pos_embed=keys.APE,
        patch_norm=keys.PATCH_NORM,
        **arguments,
    )


def _vit(cfg: CfgNode, **arguments: Any) -> VisionTransformer:
    keys = cfg.MODEL.VIT
    return VisionTransformer(
        patch_size=keys.PATCH_SIZE,
        in_chans=keys.IN_CHANS,
        embed_dim=keys.EMBED_DIM,
        depth=keys.DEPTH,
        num_heads=keys.NUM_HEADS,
        mlp_ratio=keys.MLP_RATIO,
        qkv_bias=keys.QKV_BIAS,
        init_values=keys.INIT_VALUES,
        use_ape=keys.USE_APE,
        use_rpb=keys.USE_RPB,
        use_shared_rpb=keys.USE_SHARED_RPB,
        use_mean_pooling=keys.USE_MEAN_POOLING,
        # Pre-training cuts initial weights at one standard deviation, fine-tuning practically not.
        init_cut=0.02 if arguments["use_mask_token"] else 2.0,
        **arguments,
    )


ENCODERS: dict[str, Callable[..., Any]] = {"swin": _swin, "vit": _vit}
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
