"""Build models from the configuration, which no other file in models/ reads."""

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from yacs.config import CfgNode

from models.color_targets import ColorBins, ColorClusters, Colors, read_codebook
from models.convnext import ConvNeXt
from models.decoders import linear_decoder, mlp_decoder
from models.foreign import find_weights
from models.inverse_swin import inverse_swin_base, inverse_swin_tiny
from models.objectives import (
    Loss,
    NormalizedPixelTarget,
    PixelTarget,
    ShrunkTarget,
    Target,
    masked_cross_entropy,
    masked_l1,
    masked_l2,
    masked_smooth_l1,
    num_classes_of,
)
from models.pretrained import HEAD, class_names, head_size, rename_weights
from models.resnet import ResNet
from models.simmim import Encoder, SimMIM
from models.swin_transformer import SwinTransformer
from models.swin_transformer_v2 import SwinTransformerV2
from models.token_target import TokenTarget
from models.vision_transformer import VisionTransformer
from models.windows import Grid
from utils.checkpoints.differences import EVAL_INPUT, PRETRAIN_INPUT, changed_values
from utils.checkpoints.reading import Content, Weights, read_checkpoint, require_finite
from utils.checkpoints.state import restore_model
from utils.config import config_of
from utils.messages import choose, require_divisible, shown
from utils.randomness import MODEL_STREAM, seeded

# `Encoder` describes the constructor arguments.
ENCODERS: dict[str, Callable[..., Encoder]] = {
    "swin": SwinTransformer,
    "swinv2": SwinTransformerV2,
    "vit": VisionTransformer,
    "resnet": ResNet,
    "convnext": ConvNeXt,
}
# (features, pixels of the target along a feature's side, channels of the prediction, rows and
# columns of features) -> head
DECODERS: dict[str, Callable[[int, int, int, Grid], nn.Module]] = {
    "linear": linear_decoder,
    "mlp": mlp_decoder,
    "inverse_swin_tiny": inverse_swin_tiny,
    "inverse_swin_base": inverse_swin_base,
}


def _colors(cfg: CfgNode) -> Colors:
    return Colors(cfg.DATA.MEAN, cfg.DATA.STD)


def _tokens(cfg: CfgNode) -> TokenTarget:
    keys = cfg.MODEL.SIMMIM.TOKENS
    if cfg.MODEL.SIMMIM.TARGET_SHRINK != 1:
        raise ValueError(
            f"MODEL.SIMMIM.TARGET_SHRINK is {cfg.MODEL.SIMMIM.TARGET_SHRINK}, expected 1 for "
            "tokens: MODEL.SIMMIM.TOKENS.SHRINK shrinks the tokenizer's image"
        )
    return TokenTarget(
        keys.FILE,
        keys.VOCABULARY,
        keys.PATCH_SIZE,
        keys.SHRINK,
        keys.RANGE,
        _colors(cfg),
        to_2tuple(cfg.DATA.IMG_SIZE),
        cfg.MODEL[cfg.MODEL.TYPE.upper()].IN_CHANS,
    )


# MODEL.SIMMIM.TARGET_SHRINK applies to all of them.
TARGETS: dict[str, Callable[[CfgNode], Target]] = {
    "pixels": lambda cfg: PixelTarget(),
    "normalized_pixels": lambda cfg: NormalizedPixelTarget(cfg.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE),
    "color_bins": lambda cfg: ColorBins(cfg.MODEL.SIMMIM.COLOR_BINS.NUMBER, _colors(cfg)),
    "color_clusters": lambda cfg: ColorClusters(
        read_codebook(target_file(cfg), cfg.MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER), _colors(cfg)
    ),
    "tokens": _tokens,
}
LOSSES: dict[str, Loss] = {
    "l1": masked_l1,
    "l2": masked_l2,
    "smooth_l1": masked_smooth_l1,
    "cross_entropy": masked_cross_entropy,
}
_SHRINKS = (1, 2, 4, 8, 16, 32)
# Which of these losses are for targets of real numbers, and which for classes.
_FOR_CLASSES = {"l1": False, "l2": False, "smooth_l1": False, "cross_entropy": True}


def build_encoder(cfg: CfgNode, *, num_classes: int = 0, use_mask_token: bool = False) -> Encoder:
    """Build the encoder MODEL.TYPE; ValueError where it is unknown or its sizes do not fit."""
    name = cfg.MODEL.TYPE
    encoder = choose(ENCODERS, name, "MODEL.TYPE")
    if name.upper() not in cfg.MODEL:
        raise ValueError(
            f"MODEL.TYPE is {name}, whose keys are in no section MODEL.{name.upper()}: "
            "add it to utils/config/defaults.py, with IN_CHANS"
        )
    build = functools.partial(
        encoder,
        **{key.lower(): value for key, value in cfg.MODEL[name.upper()].items()},
        image_size=cfg.DATA.IMG_SIZE,
        drop_rate=cfg.MODEL.DROP_RATE,
        drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
        num_classes=num_classes,
        use_mask_token=use_mask_token,
        use_checkpoint=cfg.TRAIN.USE_CHECKPOINT,
    )
    section = f"MODEL.{name.upper()}"
    probe = torch.empty(0)
    if type(probe) is Tensor and not probe.is_meta:  # neither fake nor meta tensors
        _require_memory(build, section)
    with _counted_sizes(section):
        return build()


def _require_memory(build: Callable[[], Encoder], section: str) -> None:
    """Raise ValueError if the encoder's weights alone exceed this machine's memory.

    The weights are counted in a model on the meta device, which takes no memory. An encoder that
    cannot be built there is not counted.
    """
    try:
        with warnings.catch_warnings(), seeded(MODEL_STREAM, 0), torch.device("meta"):
            warnings.simplefilter("ignore")  # the encoder itself repeats them
            with _counted_sizes(section):
                encoder = cast(nn.Module, build())
        weights = sum(parameter.numel() for parameter in encoder.parameters())
    except _TooManyError:
        raise
    except Exception:  # the constructor needs values, or is wrong: then the encoder itself says so
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * weights > memory:
        raise ValueError(
            f"{section}: an encoder of these sizes has {weights:.3g} weights, more than the "
            f"{memory / 2**30:.0f} GiB of this machine hold"
        )


# What torch says of a tensor that it cannot count.
_OVERFLOWS = ("Storage size calculation overflowed", "integer multiplication overflow")


class _TooManyError(ValueError):
    """A tensor has more numbers than torch can count."""


@contextlib.contextmanager
def _counted_sizes(section: str) -> Iterator[None]:
    """Turn torch's error for a tensor of more than 2^63 bytes into a `_TooManyError`."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _OVERFLOWS):
            raise
        raise _TooManyError(
            f"{section}: an encoder of these sizes has a tensor of more than 2^63 bytes"
        ) from None


def build_pretrain_model(cfg: CfgNode) -> SimMIM:
    """Build SimMIM: encoder with mask token, decoder, target and loss; ValueError for no fit."""
    keys = cfg.MODEL.SIMMIM
    name = _target_name(cfg)
    choose(TARGETS, name, "MODEL.SIMMIM.TARGET")
    decoder = choose(DECODERS, keys.DECODER, "MODEL.SIMMIM.DECODER")
    loss = choose(LOSSES, keys.LOSS, "MODEL.SIMMIM.LOSS")
    encoder = build_encoder(cfg, use_mask_token=True)
    target = _build_target(cfg, name)
    stride = _stride_in_target(encoder, target, cfg)
    _require_small_pixels(target, cfg)
    channels = target.channels(encoder.in_chans)
    _require_small_prediction(target, channels, cfg)
    height, width = (-(-side // encoder.stride) for side in to_2tuple(cfg.DATA.IMG_SIZE))
    head = decoder(encoder.num_features, stride, channels, (height, width))
    return SimMIM(encoder, head, target, loss, loss_everywhere=keys.SCOPE == "all")


def target_file(cfg: CfgNode) -> str:
    """The file that says what the target's classes are; '' where none does."""
    keys = cfg.MODEL.SIMMIM
    files = {"color_clusters": keys.COLOR_CLUSTERS.CODEBOOK, "tokens": keys.TOKENS.FILE}
    return str(files.get(_target_name(cfg), ""))


def _target_name(cfg: CfgNode) -> str:
    """The target's name in TARGETS; NORM_TARGET.ENABLE is the published way to normalize pixels."""
    keys = cfg.MODEL.SIMMIM
    if not keys.NORM_TARGET.ENABLE:
        return str(keys.TARGET)
    if keys.TARGET not in ("pixels", "normalized_pixels"):
        raise ValueError(
            f"MODEL.SIMMIM.NORM_TARGET.ENABLE is for pixels, and MODEL.SIMMIM.TARGET is "
            f"{shown(keys.TARGET)}: choose one of them"
        )
    return "normalized_pixels"


def _build_target(cfg: CfgNode, name: str) -> Target:
    """The target of that name, shrunk by TARGET_SHRINK; ValueError unless LOSS fits it."""
    keys, shrink = cfg.MODEL.SIMMIM, cfg.MODEL.SIMMIM.TARGET_SHRINK
    target = TARGETS[name](cfg)
    has_classes = num_classes_of(target) > 0
    if _FOR_CLASSES.get(keys.LOSS, has_classes) != has_classes:
        kind = "classes" if has_classes else "real numbers"
        fitting = [loss for loss, of_classes in _FOR_CLASSES.items() if of_classes == has_classes]
        raise ValueError(
            f"MODEL.SIMMIM.LOSS {keys.LOSS} does not fit MODEL.SIMMIM.TARGET {name}, which is of "
            f"{kind}; choices: {', '.join(fitting)}"
        )
    if shrink not in _SHRINKS:
        choices = ", ".join(map(str, _SHRINKS))
        raise ValueError(f"MODEL.SIMMIM.TARGET_SHRINK is {shrink}; choices: {choices}")
    for side in to_2tuple(cfg.DATA.IMG_SIZE):
        require_divisible(side, shrink, "DATA.IMG_SIZE", "MODEL.SIMMIM.TARGET_SHRINK")
    return target if shrink == 1 else ShrunkTarget(target, shrink)


def _require_small_prediction(target: Target, channels: int, cfg: CfgNode) -> None:
    """ValueError where the scores of classes for a micro-batch take more than MAX_PREDICTION."""
    keys, images = cfg.MODEL.SIMMIM, cfg.DATA.BATCH_SIZE
    height, width = (target.side(side) for side in to_2tuple(cfg.DATA.IMG_SIZE))
    size = 4 * images * channels * height * width / 2**30
    if num_classes_of(target) and size > keys.MAX_PREDICTION:
        raise ValueError(
            f"the prediction of MODEL.SIMMIM.TARGET {keys.TARGET} has {channels} numbers for each "
            f"of {height} x {width} places: {size:.1f} GiB in float32 for a micro-batch of "
            f"{images} images, and training takes several times as much; give a larger "
            "MODEL.SIMMIM.TARGET_SHRINK, fewer classes or a smaller DATA.BATCH_SIZE, or more than "
            f"{keys.MAX_PREDICTION:g} GiB to MODEL.SIMMIM.MAX_PREDICTION"
        )


def _require_small_pixels(target: Target, cfg: CfgNode) -> None:
    """ValueError where a pixel of the target covers several cells: few, or none, would count."""
    cell = cfg.DATA.MASK_PATCH_SIZE
    for side in to_2tuple(cfg.DATA.IMG_SIZE):
        pixel = Fraction(side, target.side(side))
        if pixel > cell and cfg.MODEL.SIMMIM.SCOPE == "hidden":
            raise ValueError(
                f"a pixel of the target covers {float(pixel):g} of the image, and a cell of the "
                f"mask {cell} (DATA.MASK_PATCH_SIZE): the loss would miss hidden cells; give cells "
                f"of at least {math.ceil(pixel)}, or a finer target (TARGET_SHRINK, of tokens "
                "PATCH_SIZE), or MODEL.SIMMIM.SCOPE all"
            )


def _stride_in_target(encoder: Encoder, target: Target, cfg: CfgNode) -> int:
    """Pixels of the target along a feature's side; ValueError unless one integer for both sides."""
    sides = to_2tuple(cfg.DATA.IMG_SIZE)
    strides = {Fraction(encoder.stride * target.side(side), side) for side in sides}
    stride = strides.pop()
    if strides or stride.denominator != 1 or stride < 1:
        found = " x ".join(str(target.side(side)) for side in sides)
        raise ValueError(
            f"the target has {found} pixels for DATA.IMG_SIZE {shown(cfg.DATA.IMG_SIZE)}, where a "
            f"feature of the encoder stands for {encoder.stride} x {encoder.stride} of the image: "
            "expected a whole number of the target's, the same along both sides "
            "(MODEL.SIMMIM.TARGET, TARGET_SHRINK and, of tokens, PATCH_SIZE)"
        )
    return int(stride)


def build_classifier(cfg: CfgNode, num_classes: int) -> nn.Module:
    """Build the encoder with a linear classification head."""
    return cast(nn.Module, build_encoder(cfg, num_classes=num_classes))


def build_criterion(cfg: CfgNode, *, soft_targets: bool) -> nn.Module:
    """Build the cross entropy; it smooths hard labels only, since Mixup has smoothed soft ones."""
    return nn.CrossEntropyLoss(label_smoothing=0.0 if soft_targets else cfg.MODEL.LABEL_SMOOTHING)


def stored_config(path: str | Path) -> CfgNode:
    """The configuration stored in a checkpoint; ValueError where it is missing or invalid."""
    return _config_in(read_checkpoint(path), path)


def load_simmim(
    path: str | Path, cfg: CfgNode | None = None, say: Callable[[str], None] = print
) -> SimMIM:
    """Load a pre-trained model from a checkpoint, on the CPU and in evaluation mode.

    `cfg` (from `get_config`) replaces the stored configuration, which some files lack. `say` gets
    lines about weights in a section or with a prefix of another program (models/foreign.py), and
    about pictures that `cfg` prepares otherwise than in training. ValueError where the file cannot
    be read or does not fit.
    """
    content = read_checkpoint(path)
    if "head.weight" in find_weights(content, path, HEAD)[0]:
        raise ValueError(
            f"checkpoint {path} is a classifier, which reconstructs nothing: main_finetune.py "
            "evaluates it (--eval --resume)"
        )
    model = build_pretrain_model(_config_in(content, path) if cfg is None else cfg)
    weights, origin = find_weights(content, path, model.state_dict())
    _say_origin(say, path, origin, content, cfg, PRETRAIN_INPUT)
    _restore(rename_weights(model.encoder, weights), model, path)
    return model.eval()


def load_classifier(
    path: str | Path, cfg: CfgNode | None = None, say: Callable[[str], None] = print
) -> tuple[nn.Module, list[str]]:
    """Load a fine-tuned model as `load_simmim` does, and its class names, [] if none are stored."""
    content = read_checkpoint(path)
    weights, origin = find_weights(content, path, HEAD)
    num_classes = head_size(weights, path)
    names = class_names(content, num_classes, path)
    model = build_classifier(_config_in(content, path) if cfg is None else cfg, num_classes)
    _say_origin(say, path, origin, content, cfg, EVAL_INPUT)
    _restore(rename_weights(model, weights), model, path)
    return model.eval(), names


def _restore(weights: Weights, model: nn.Module, path: str | Path) -> None:
    restore_model(weights, model, Path(path))
    require_finite(weights, path)


def _say_origin(
    say: Callable[[str], None],
    path: str | Path,
    origin: str,
    content: Content,
    cfg: CfgNode | None,
    keys: Sequence[str],
) -> None:
    """Say where weights were found, and which of the keys had other values in training."""
    if origin:
        say(f"{path}: its weights are taken {origin}")
    changed = "" if cfg is None else changed_values(content.get("config"), cfg, keys)
    if changed:
        say(f"{path} was trained with pictures prepared otherwise: {changed}")


def _config_in(content: object, path: str | Path) -> CfgNode:
    values = content.get("config") if isinstance(content, dict) else None
    hint = "give that of its recipe (cfg=utils.config.get_config(FILE))"
    if not isinstance(values, dict):
        raise ValueError(f"checkpoint {path} stores no configuration: {hint}")
    try:
        return config_of(values, f"configuration in checkpoint {path}")
    except ValueError as error:  # of another program, or of another version of this one
        raise ValueError(f"{error}; {hint}, or first import the code that adds its keys") from None
