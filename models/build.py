"""From the configuration to models; the only file here that reads it."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn
from yacs.config import CfgNode

from models.decoders import linear_decoder
from models.objectives import Loss, NormalizedPixelTarget, PixelTarget, Target, masked_l1
from models.pretrained import class_names, head_size
from models.simmim import Encoder, SimMIM
from models.swin_transformer import SwinTransformer
from models.swin_transformer_v2 import SwinTransformerV2
from models.vision_transformer import VisionTransformer
from utils.checkpoints.reading import model_weights, read_checkpoint, require_finite
from utils.checkpoints.state import restore_model
from utils.config import config_of
from utils.messages import choose, shown


def _vit(**arguments: Any) -> VisionTransformer:
    # Pre-training cuts initial weights at one standard deviation, fine-tuning practically not.
    return VisionTransformer(init_cut=0.02 if arguments["use_mask_token"] else 2.0, **arguments)


# Each takes the keys of its section (EMBED_DIM -> embed_dim) and what `build_encoder` adds.
ENCODERS: dict[str, Callable[..., Any]] = {
    "swin": SwinTransformer,
    "swinv2": SwinTransformerV2,
    "vit": _vit,
}
# (features, pixels of the target along a feature's side, numbers of such a pixel) -> head
DECODERS: dict[str, Callable[[int, int, int], nn.Module]] = {"linear": linear_decoder}
TARGETS: dict[str, Callable[[CfgNode], Target]] = {
    "pixels": lambda cfg: PixelTarget(),
    "normalized_pixels": lambda cfg: NormalizedPixelTarget(cfg.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE),
}
LOSSES: dict[str, Loss] = {"l1": masked_l1}


def build_encoder(cfg: CfgNode, *, num_classes: int = 0, use_mask_token: bool = False) -> Any:
    """The encoder MODEL.TYPE names; ValueError where it is unknown or its sizes do not fit."""
    name = cfg.MODEL.TYPE
    encoder = choose(ENCODERS, name, "MODEL.TYPE")
    if name.upper() not in cfg.MODEL:
        raise ValueError(
            f"MODEL.TYPE is {name}, whose keys are in no section MODEL.{name.upper()}: "
            "add it to utils/config/defaults.py, with IN_CHANS"
        )
    if torch.get_default_device().type != "meta":
        _require_memory(cfg)
    return encoder(
        **{key.lower(): value for key, value in cfg.MODEL[name.upper()].items()},
        image_size=cfg.DATA.IMG_SIZE,
        drop_rate=cfg.MODEL.DROP_RATE,
        drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
        num_classes=num_classes,
        use_mask_token=use_mask_token,
        use_checkpoint=cfg.TRAIN.USE_CHECKPOINT,
    )


def _require_memory(cfg: CfgNode) -> None:
    """ValueError where the weights of the encoder's blocks alone exceed this machine's memory.

    A block of width w has about 12 w^2 of them; a Swin's width doubles from stage to stage.
    """
    keys = cfg.MODEL.get(cfg.MODEL.TYPE.upper(), {})
    depths = keys.get("DEPTHS", [keys.get("DEPTH", 0)])
    width = keys.get("EMBED_DIM", 0)
    weights = sum(12 * depth * (width * 2**stage) ** 2 for stage, depth in enumerate(depths))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * weights > memory:
        raise ValueError(
            f"MODEL.{cfg.MODEL.TYPE.upper()}: EMBED_DIM {width} and depth {shown(depths)} make "
            f"about {weights:.3g} weights, more than the {memory / 2**30:.0f} GiB of this machine"
        )


def build_pretrain_model(cfg: CfgNode) -> SimMIM:
    """Encoder with mask token, decoder, target and loss."""
    keys = cfg.MODEL.SIMMIM
    name = "normalized_pixels" if keys.NORM_TARGET.ENABLE else keys.TARGET
    target = choose(TARGETS, name, "MODEL.SIMMIM.TARGET")(cfg)
    decoder = choose(DECODERS, keys.DECODER, "MODEL.SIMMIM.DECODER")
    loss = choose(LOSSES, keys.LOSS, "MODEL.SIMMIM.LOSS")
    encoder = build_encoder(cfg, use_mask_token=True)
    stride = _stride_in_target(encoder, target, cfg)
    head = decoder(encoder.num_features, stride, target.channels(encoder.in_chans))
    return SimMIM(encoder, head, target, loss)


def _stride_in_target(encoder: Encoder, target: Target, cfg: CfgNode) -> int:
    """Pixels of the target along a feature's side; ValueError unless that is a whole number."""
    sides = to_2tuple(cfg.DATA.IMG_SIZE)
    strides = {Fraction(encoder.stride * target.side(side), side) for side in sides}
    stride = strides.pop()
    if strides or stride.denominator != 1 or stride < 1:
        found = " x ".join(str(target.side(side)) for side in sides)
        raise ValueError(
            f"the target has {found} pixels for DATA.IMG_SIZE {shown(cfg.DATA.IMG_SIZE)}, where a "
            f"feature of the encoder stands for {encoder.stride} x {encoder.stride} of the image: "
            "expected a whole number of the target's, the same along both sides"
        )
    return int(stride)


def build_classifier(cfg: CfgNode, num_classes: int) -> nn.Module:
    """The encoder with a linear classification head."""
    classifier: nn.Module = build_encoder(cfg, num_classes=num_classes)
    return classifier


def build_criterion(cfg: CfgNode, *, soft_targets: bool) -> nn.Module:
    """Cross entropy of logits and targets; Mixup has already smoothed soft ones."""
    return nn.CrossEntropyLoss(label_smoothing=0.0 if soft_targets else cfg.MODEL.LABEL_SMOOTHING)


def stored_config(path: str | Path) -> CfgNode:
    """The configuration that a checkpoint stores; ValueError where it stores none of today's."""
    return _config_in(read_checkpoint(path), path)


def load_simmim(path: str | Path, cfg: CfgNode | None = None) -> SimMIM:
    """A pre-trained model as it is in a checkpoint, to be used: on the CPU, in evaluation mode.

    `cfg` for files that do not store the configuration (by `get_config`). ValueError where the
    file cannot be read or does not fit.
    """
    state = read_checkpoint(path)
    weights = model_weights(state, path)
    if "head.weight" in weights:
        raise ValueError(
            f"checkpoint {path} is a classifier, which reconstructs nothing: main_finetune.py "
            "evaluates it (--eval --resume)"
        )
    model = build_pretrain_model(_config_in(state, path) if cfg is None else cfg)
    restore_model(weights, model, Path(path))
    require_finite(weights, path)
    return model.eval()


def load_classifier(path: str | Path, cfg: CfgNode | None = None) -> tuple[nn.Module, list[str]]:
    """The same for a fine-tuned model; also the names of its classes, none where it stores none."""
    state = read_checkpoint(path)
    weights = model_weights(state, path)
    num_classes = head_size(weights, path)
    names = class_names(state, num_classes, path)
    model = build_classifier(_config_in(state, path) if cfg is None else cfg, num_classes)
    restore_model(weights, model, Path(path))
    require_finite(weights, path)
    return model.eval(), names


def _config_in(state: Any, path: str | Path) -> CfgNode:
    values = state.get("config") if isinstance(state, dict) else None
    hint = "give that of its recipe (cfg=utils.config.get_config(FILE))"
    if not isinstance(values, dict):
        raise ValueError(f"checkpoint {path} stores no configuration: {hint}")
    try:
        return config_of(values, f"configuration in checkpoint {path}")
    except ValueError as error:  # of another program, or of this one when it had other keys
        raise ValueError(f"{error}; {hint}, or import first what adds its keys") from None
