"""Start a classifier from a checkpoint of any origin, and account for every parameter."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from models.origin import image_aspect, swinv2_window
from models.position_bias import (
    relative_coordinates,
    resize_position_bias,
    window_of_coordinates,
    window_of_table,
)
from models.windows import Grid
from utils.checkpoints.reading import (
    Weights,
    model_weights,
    read_checkpoint,
    require_finite,
    require_same_numbers,
)
from utils.messages import require_same_shapes, short, shown

_TABLE = "relative_position_bias_table"
_SHARED_TABLE = f"rel_pos_bias.{_TABLE}"
_COORDINATES = "relative_coords_table"
_STEM = "patch_embed.proj.weight"
_RGB = 3
_MOST_CLASSES = 10**7  # as many as MODEL.NUM_CLASSES may be
# What a file may lack, and what may be left over in it; anything else is another architecture.
_MAY_LACK = ("head.", "fc_norm.")
_MAY_BE_LEFT = ("decoder.", "mask_token", "head.")


@dataclass(frozen=True)
class LoadReport:
    """What became of the parameters: names of the model's, and of those left over in the file."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    initialized: tuple[str, ...]
    left_over: tuple[str, ...]
    notes: tuple[str, ...] = ()

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
    """Copy the encoder of a checkpoint into a classifier; what became of each parameter.

    Reads checkpoints of this project, published ones, bare state dicts and safetensors. Position
    biases of another size are resized (models/position_bias.py), a ViT's shared one is copied to
    every block, Swin V2's coordinates count in the file's windows, a stem for RGB is adapted to
    other channels (one: their sum; else repeated, times 3 / channels), a head of another size is
    left out. ValueError where anything but head, `fc_norm` and position biases is missing, or
    anything but decoder, mask token and head is left over.
    """
    state = read_checkpoint(path)
    stored = model_weights(state, path)
    weights = {name.removeprefix("encoder."): value for name, value in stored.items()}
    if len(weights) < len(stored):
        twice = next(name for name in stored if f"encoder.{name}" in stored)
        raise ValueError(f"checkpoint {path} holds both {short(twice)} and encoder.{short(twice)}")
    own = model.state_dict()
    notes: list[str] = []
    _spread_shared_table(weights, own)
    resized = _resize_tables(weights, model, image_aspect(state), path)
    resized += _adapt_stem(weights, own, notes)
    coordinates = _rebuild_coordinates(weights, own, state, path, notes)
    own = {name: value for name, value in own.items() if name not in coordinates}
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
    model.load_state_dict(weights | coordinates, strict=False)
    loaded = [name for name in weights if name not in resized]
    return LoadReport(
        tuple(loaded), tuple(resized), tuple(initialized), tuple(left_over), tuple(notes)
    )


def head_size(weights: Weights, source: str | Path) -> int:
    """How many classes a checkpoint tells apart; ValueError where it has no head, or no usable one.

    A head of no numbers can claim any number of classes in a few bytes.
    """
    head = weights.get("head.weight")
    if head is None or head.ndim != 2:
        raise ValueError(
            f"checkpoint {source} has no classification head: a pre-trained model is fine-tuned "
            "first (--pretrained CKPT)"
        )
    if not head.numel() or len(head) > _MOST_CLASSES:
        raise ValueError(
            f"checkpoint {source}: head.weight has shape {tuple(head.shape)}, expected 1 to "
            f"{_MOST_CLASSES} classes"
        )
    return len(head)


def class_names(state: Mapping[str, Any], num_classes: int, source: str | Path) -> list[str]:
    """Names of a checkpoint's classes in order; none where it does not name them.

    ValueError where they are no names, or not as many as classes.
    """
    names = state.get("classes")
    if names is None or (type(names) is int and names == num_classes):  # of other programs
        return []
    names = list(names) if isinstance(names, tuple) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"checkpoint {source}: classes is {shown(names)}, expected names")
    if len(names) not in (0, num_classes):
        raise ValueError(f"checkpoint {source} names {len(names)} classes, its head {num_classes}")
    return names


def _spread_shared_table(weights: Weights, own: Mapping[str, Tensor]) -> None:
    """Copy a ViT's shared position bias to every block, where the model has one per block."""
    tables = [name for name in own if name.endswith(_TABLE)]
    if _SHARED_TABLE in weights and tables and _SHARED_TABLE not in own:
        shared = weights.pop(_SHARED_TABLE)
        weights.update({name: shared for name in tables if name not in weights})


def _resize_tables(
    weights: Weights, model: nn.Module, aspect: float | None, source: str | Path
) -> list[str]:
    """Resize position biases to the model's windows; their names."""
    own = model.state_dict()
    # What has the name of a table and is none is left to the comparison of shapes.
    tables = [
        name
        for name, value in weights.items()
        if name.endswith(_TABLE) and value.ndim == 2 and value.numel()
    ]
    resized = []
    for name in (name for name in tables if name in own):
        target: Any = model.get_submodule(name.rpartition(".")[0]).window
        if aspect is None and len(weights[name]) == len(own[name]):
            continue  # nothing tells of another shape
        num_kept = len(own[name]) - math.prod(2 * side - 1 for side in target)
        try:
            window = window_of_table(len(weights[name]) - num_kept, aspect or 1.0)
            if window != target:
                weights[name] = resize_position_bias(weights[name], window, target)
                resized.append(name)
        except ValueError as error:
            raise ValueError(f"checkpoint {source}: {short(name)}: {error}") from None
    return resized


def _adapt_stem(weights: Weights, own: Mapping[str, Tensor], notes: list[str]) -> list[str]:
    """Fit the first layer's weights for RGB to the model's number of channels; its name."""
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


def _rebuild_coordinates(
    weights: Weights,
    own: Mapping[str, Tensor],
    state: Any,
    source: str | Path,
    notes: list[str],
) -> Weights:
    """Swin V2's relative coordinates for the model's windows, in units of the file's.

    Where the file does not tell its windows they stay what the configuration made them.
    """
    rebuilt: Weights = {}
    told: dict[str, Grid] = {}
    for name in [name for name in own if name.endswith(_COORDINATES)]:
        stage = name.split(".")[1]
        window = swinv2_window(state, int(stage))
        stored = weights.pop(name, None)
        if stored is not None:
            try:
                window = window_of_coordinates(stored)
            except ValueError as error:
                raise ValueError(f"checkpoint {source}: {short(name)}: {error}") from None
        rebuilt[name] = own[name]
        if window is not None:
            rows, columns = own[name].shape[1:3]
            own_window = (rows + 1) // 2, (columns + 1) // 2
            rebuilt[name] = relative_coordinates(own_window, window).to(own[name])
            told[stage] = window
    if told:
        windows = ", ".join(f"{height}x{width}" for height, width in told.values())
        notes.append(f"position biases were learned in windows of {windows}, says the file")
    return rebuilt


def _may_be_left(name: str, weights: Weights, own: Mapping[str, Tensor]) -> bool:
    """Whether a parameter of the file is not for this model, for a reason that is known."""
    if name in own:
        return name.startswith("head.") and weights[name].shape != own[name].shape
    # A classifier that averages tokens has `fc_norm` in the place of the encoder's last norm.
    replaced = name.startswith("norm.") and "fc_norm.weight" in own
    return replaced or name.startswith(_MAY_BE_LEFT)


def _may_lack(name: str, weights: Weights) -> bool:
    """Whether the model keeps its own initial value, for a reason that is known."""
    without_tables = not any(other.endswith(_TABLE) for other in weights)
    return name.startswith(_MAY_LACK) or (without_tables and name.endswith(_TABLE))


def _shortened(names: tuple[str, ...]) -> str:
    """Their number, and the first of them."""
    first = ", ".join(map(short, names[:4]))
    return f"{len(names)}" + (f" ({first}{', ...' if len(names) > 4 else ''})" if names else "")
