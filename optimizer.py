"""Parameter groups, learning-rate scaling and the optimizer: one path for both stages."""

from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from utils.messages import choose

# Excluded by OPTIMIZER.NO_WEIGHT_DECAY `intended`, in addition to the encoder's own exclusions.
_INTENDED = ("mask_token", "relative_position_bias_table")
_EXCLUSIONS = ("published", "intended")
_OPTIMIZERS = ("adamw", "sgd")
_MOMENTS: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    torch.optim.SGD: frozenset({"momentum_buffer"}),
}


def scale_lr(lr: float, images_per_update: int) -> float:
    """Scale a config's learning rate, which is for 512 images per update (section 4.1)."""
    return lr * images_per_update / 512


def build_optimizer(cfg: CfgNode, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Build AdamW or SGD on `parameter_groups`; `lr` is the scaled peak before layer-wise decay."""
    keys = cfg.TRAIN.OPTIMIZER
    choose(dict.fromkeys(_OPTIMIZERS), keys.NAME, "TRAIN.OPTIMIZER.NAME")
    groups = parameter_groups(
        model, lr, cfg.TRAIN.WEIGHT_DECAY, cfg.TRAIN.LAYER_DECAY, keys.NO_WEIGHT_DECAY
    )
    if keys.NAME == "sgd":
        fused = cfg.TRAIN.SHARDING == "none"  # torch's fused SGD does not support sharded tensors
        sgd = torch.optim.SGD(groups, lr=lr, momentum=keys.MOMENTUM, nesterov=True, fused=fused)
        for parameter in model.parameters():  # else a skipped first step leaves it unset
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(keys.BETAS), eps=keys.EPS, fused=True)


def expected_moments(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """Names of the state that an optimizer of this kind keeps for each updated parameter."""
    return _MOMENTS[type(optimizer)]


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float, exclusion: str
) -> list[dict[str, Any]]:
    """One group per pair of learning-rate scale and weight decay, in order of first appearance.

    `model` is an encoder or holds one as `.encoder`. The scale of layer id i of n blocks is
    layer_decay^(n + 1 - i); only this function multiplies `lr` by it.
    """
    choose(dict.fromkeys(_EXCLUSIONS), exclusion, "TRAIN.OPTIMIZER.NO_WEIGHT_DECAY")
    encoder: Any = getattr(model, "encoder", model)
    prefix = "" if encoder is model else "encoder."
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last_layer = encoder.num_layers + 1
        inside = name.startswith(prefix)
        layer = encoder.layer_of(name.removeprefix(prefix)) if inside else last_layer
        scale = layer_decay ** (last_layer - layer)
        decays = not (
            parameter.ndim == 1
            or name.endswith(".bias")
            or (inside and _excluded(encoder, name.removeprefix(prefix), prefix != "", exclusion))
        )
        group = groups.setdefault(
            (scale, decays),
            dict(lr=lr * scale, weight_decay=weight_decay if decays else 0.0, params=[], names=[]),
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _excluded(encoder: Any, name: str, pretraining: bool, exclusion: str) -> bool:
    """Whether the encoder excludes a parameter (name without prefix) from weight decay.

    In pre-training, the published runs compared excluded names below "encoder." and thus matched
    only the encoder's direct parameters: tables inside blocks did decay.
    """
    if exclusion == "intended":
        return encoder.no_weight_decay(name) or name.endswith(_INTENDED)
    return encoder.no_weight_decay(name) and not (pretraining and "." in name)
