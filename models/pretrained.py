"""Initialize a classifier from a checkpoint of any origin; account for every parameter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from timm.models import adapt_input_conv
from torch import Tensor, nn

from models.foreign import MAY_LACK, find_weights
from models.origin import Adapted
from models.position_bias import TABLE
from utils.checkpoints.reading import (
    Content,
    Weights,
    read_checkpoint,
    require_finite,
    require_same_numbers,
)
from utils.messages import require_same_shapes, short, shown

_STEM = "patch_embed.proj.weight"
_RGB = 3
HEAD = ("head.weight", "head.bias")  # which every classifier has
_MOST_CLASSES = 10**7  # the limit of MODEL.NUM_CLASSES
# What a file may have in excess; other differences mean another architecture.
_MAY_BE_LEFT = ("decoder.", "mask_token", "head.")


@dataclass(frozen=True)
class LoadReport:
    """Names of the model's parameters by treatment, and of those left over in the file.

    `config` is the configuration that the file stores, if any.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    initialized: tuple[str, ...]
    left_over: tuple[str, ...]
    notes: tuple[str, ...] = ()
    config: object = None

    def __str__(self) -> str:
        names = {
            "resized": self.resized,
            "initialized": self.initialized,
            "left over": self.left_over,
        }
        parts = [f"{kind}: {_shortened(which)}" for kind, which in names.items()]
        if "head.weight" in self.initialized and "head.weight" in self.left_over:
            parts.append("the head has another number of classes and starts anew")
        return "; ".join([f"loaded: {len(self.loaded)}", *parts, *self.notes])


def load_pretrained(model: nn.Module, path: str | Path) -> LoadReport:
    """Copy the encoder of a checkpoint into a classifier; report each parameter's treatment.

    Reads checkpoints of this project, published ones, bare state dicts, safetensors, and weights in
    the sections and with the prefixes of other programs (models/foreign.py). Positions
    of another size are resized (models/position_bias.py), a ViT's shared one is copied to
    blocks with their own, Swin V2's coordinates use units of the file's windows, and an RGB stem is
    adapted to other channels (one: sum; else repeated, times 3 / channels). A head of another size
    is left out. ValueError where more than head, `fc_norm` and position biases (if none are stored)
    is missing, or more than decoder, mask token, head and a norm that `fc_norm` replaces remains.
    """
    content = read_checkpoint(path)
    own = model.state_dict()
    stored, origin = find_weights(content, path, own)
    weights = {name.removeprefix("encoder."): value for name, value in stored.items()}
    if len(weights) < len(stored):
        twice = next(name for name in stored if f"encoder.{name}" in stored)
        raise ValueError(f"checkpoint {path} holds both {short(twice)} and encoder.{short(twice)}")
    weights = rename_weights(model, weights)
    notes = [f"taken {origin}"] if origin else []
    resized = _adapt_stem(weights, own, notes)
    adapted = _adapt_to_encoder(model, weights, content, path)
    resized, notes = [*adapted.resized, *resized], [*notes, *adapted.notes]
    own = {name: value for name, value in own.items() if name not in adapted.computed}
    left_over = [name for name in weights if _may_be_left(name, weights, own)]
    for name in left_over:
        del weights[name]
    initialized = [name for name in own if name not in weights and _may_lack(name, weights)]
    require_same_shapes(
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: tuple(value.shape) for name, value in own.items() if name not in initialized},
        f"checkpoint {path}",
    )
    require_same_numbers(weights, own, path)
    require_finite(weights, path)
    model.load_state_dict(weights | adapted.computed, strict=False)
    loaded = [name for name in weights if name not in resized]
    return LoadReport(
        tuple(loaded),
        tuple(resized),
        tuple(initialized),
        tuple(left_over),
        tuple(notes),
        content.get("config"),
    )


def rename_weights(encoder: object, weights: Weights) -> Weights:
    """Rename weights of older files to the encoder's current names."""
    rename: Callable[[Weights], Weights] | None = getattr(encoder, "rename_weights", None)
    return weights if rename is None else rename(weights)


def _adapt_to_encoder(
    encoder: nn.Module, weights: Weights, content: object, source: str | Path
) -> Adapted:
    """Let the encoder adapt weights that depend on its architecture: windows, tables."""
    adapt: Callable[[Weights, object], Adapted] | None = getattr(encoder, "adapt_weights", None)
    try:
        return Adapted() if adapt is None else adapt(weights, content)
    except ValueError as error:
        raise ValueError(f"checkpoint {source}: {error}") from None


def head_size(weights: Weights, source: str | Path) -> int:
    """Number of classes of a checkpoint; ValueError where its head is missing or unusable.

    A head without numbers can claim any number of classes in a few bytes.
    """
    head = weights.get("head.weight")
    if head is None or head.ndim != 2:
        other = next((name for name in weights if name.endswith(f".{HEAD[0]}")), "")
        hint = (
            f"its {short(other)} has a prefix that other names lack: save it without"
            if other
            else ("a pre-trained model is fine-tuned first (--pretrained CKPT)")
        )
        raise ValueError(f"checkpoint {source} has no classification head: {hint}")
    if not head.numel() or len(head) > _MOST_CLASSES:
        raise ValueError(
            f"checkpoint {source}: head.weight has shape {tuple(head.shape)}, expected 1 to "
            f"{_MOST_CLASSES} classes"
        )
    return len(head)


def class_names(content: Content, num_classes: int, source: str | Path) -> list[str]:
    """Class names of a checkpoint in order, [] if none are stored.

    ValueError where they are not names, or their number differs from `num_classes`.
    """
    names = content.get("classes")
    if names is None or (type(names) is int and names == num_classes):  # as other programs store it
        return []
    names = list(names) if isinstance(names, tuple) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"checkpoint {source}: classes is {shown(names)}, expected names")
    if len(names) not in (0, num_classes):
        raise ValueError(f"checkpoint {source} names {len(names)} classes, its head {num_classes}")
    return names


def _adapt_stem(weights: Weights, own: Mapping[str, Tensor], notes: list[str]) -> list[str]:
    """Adapt an RGB stem to the model's channels; return its name in a list, [] if unchanged."""
    stem = weights.get(_STEM)
    if stem is None or stem.ndim != 4 or _STEM not in own or stem.shape[1] != _RGB:
        return []
    channels = own[_STEM].shape[1]
    if channels == _RGB:
        return []
    weights[_STEM] = adapt_input_conv(channels, stem)
    rule = "summed" if channels == 1 else f"repeated, times {_RGB}/{channels}"
    notes.append(f"weights of the stem for RGB {rule} for {channels} channel(s)")
    return [_STEM]


def _may_be_left(name: str, weights: Weights, own: Mapping[str, Tensor]) -> bool:
    """Whether a parameter of the file may remain unused in this model."""
    if name in own:
        return name.startswith("head.") and weights[name].shape != own[name].shape
    # A classifier that averages tokens has `fc_norm` instead of the encoder's last norm.
    replaced = name.startswith("norm.") and "fc_norm.weight" in own
    return replaced or name.startswith(_MAY_BE_LEFT)


def _may_lack(name: str, weights: Weights) -> bool:
    """Whether the file may lack a parameter, which then keeps its initial value."""
    without_tables = not any(other.endswith(TABLE) for other in weights)
    return name.startswith(MAY_LACK) or (without_tables and name.endswith(TABLE))


def _shortened(names: tuple[str, ...]) -> str:
    """Number of names, and the first four."""
    first = ", ".join(map(short, names[:4]))
    return f"{len(names)}" + (f" ({first}{', ...' if len(names) > 4 else ''})" if names else "")
