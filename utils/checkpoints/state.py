"""What a run trains and goes on from, and how a checkpoint's content is put back into it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from lr_scheduler import Scheduler
from optimizer import expected_moments
from utils.checkpoints.reading import (
    Content,
    Weights,
    model_weights,
    one_line_errors,
    require_same_numbers,
)
from utils.checkpoints.sharded import restore_tensors
from utils.config import to_plain
from utils.messages import require_same_shapes
from utils.processes.sharding import is_sharded

LARGEST_NUMBER = 2**53
_MAY_LACK = "relative_coords_table"

# What every process adds up: sums over an epoch's good updates, numbers of its updates, and the
# state of a row of bad ones. A checkpoint holds them in this order.
EPOCH_FIGURES = ("loss", "grad_norm", "good", "skipped", "adjusted")
ROW_FIGURES = ("skipped_in_a_row", "first_skipped", "adjusted_in_a_row")


@dataclass
class Position:
    """Where a run stands: its only clock.

    All epochs before `epoch` are complete, with their validation; `images` of it are trained on;
    `update` counts all updates since the run began. The learning-rate schedule stands `offset`
    updates later, where the run was resumed with another number of images per update.
    """

    images_per_update: int
    epoch: int = 0
    images: int = 0
    update: int = 0
    offset: int = 0

    @property
    def place_in_schedule(self) -> int:
        """The update of the learning-rate schedule that comes next."""
        return self.update + self.offset

    def complete_update(self) -> None:
        """Count one update."""
        self.update += 1
        self.images += self.images_per_update

    def complete_epoch(self) -> None:
        """Stand at the beginning of the next epoch."""
        self.epoch, self.images = self.epoch + 1, 0


@dataclass
class Best:
    """The best top-1 accuracy so far, in percent, and its epoch."""

    acc1: float = -1.0
    epoch: int = -1

    def update(self, acc1: float, epoch: int) -> bool:
        """Count an evaluation; return whether it is the best, the first of equals."""
        is_best = acc1 > self.acc1
        if is_best:
            self.acc1, self.epoch = acc1, epoch
        return is_best


@dataclass
class TrainState:
    """All that a checkpoint holds; `best` and `average` only where a run fine-tunes.

    `figures` are those of the epoch so far, a row of EPOCH_FIGURES and ROW_FIGURES per process.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    position: Position
    best: Best | None = None
    average: ModelEmaV3 | None = None
    figures: list[list[float]] = field(default_factory=list)

    def models(self) -> dict[str, nn.Module]:
        """The trained model and, where there is one, the average of its weights."""
        models = {"model": self.model}
        return models if self.average is None else models | {"model_ema": self.average.module}

    def values(self) -> Content:
        """Everything but tensors, under the keys of a checkpoint."""
        at = self.position
        values: Content = {
            "lr_scheduler": {"num_steps": at.update, "offset": at.offset},
            "scaler": self.scaler.state_dict(),
            "progress": {
                "epoch": at.epoch,
                "images": at.images,
                "images_per_update": at.images_per_update,
                "figures": self.figures,
            },
        }
        return values if self.best is None else values | {"best": asdict(self.best)}

    def load_values(self, content: Content) -> None:
        """Take over what `values` returned, from a checkpoint that was validated."""
        progress, schedule = content["progress"], content["lr_scheduler"]
        self.position = Position(
            images_per_update=progress["images_per_update"],
            epoch=progress["epoch"],
            images=progress["images"],
            update=schedule["num_steps"],
            offset=schedule.get("offset", 0),
        )
        self.figures = progress["figures"]
        if content["scaler"]:  # empty where nothing was scaled
            self.scaler.load_state_dict(content["scaler"])
        if self.best is not None:
            self.best = Best(content["best"]["acc1"], content["best"]["epoch"])


def training_content(state: TrainState, cfg: CfgNode, classes: Sequence[str] = ()) -> Content:
    """All that a run goes on from, as plain values and its own tensors, not copies of them.

    Of a sharded model all but the tensors. The random states follow from SEED and the update, so
    these two numbers stand for them.
    """
    content: Content = {}
    if not is_sharded(state.model):
        content |= {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
    content |= state.values()
    if state.average is not None:
        content["model_ema"] = state.average.module.state_dict()
    # `epoch` is the last complete one, from 0; -1 before the first.
    content |= {"epoch": state.position.epoch - 1, "update": state.position.update}
    return content | {"seed": cfg.SEED, "config": to_plain(cfg), "classes": list(classes)}


def restore(content: Content, state: TrainState, source: Path) -> None:
    """Copy what `load_checkpoint` read into the state, and take its tensors out of `content`.

    Tensors are copied one by one and released, so that at no time there is more than the state and
    the file's content. Settings of the optimizer (weight decay, betas) stay those of the
    configuration; only its moments are read. ValueError names the first differences; nothing is
    changed then.
    """
    if source.is_dir():
        restore_tensors(source, state.model, state.optimizer)
    else:
        models = state.models()
        for name, model in models.items():
            _require_fitting(model_weights(content, source, (name,)), model, source)
        moments = _moments(content["optimizer"], state.optimizer, source)
        for name, model in models.items():
            restore_model(model_weights(content, source, (name,)), model, source)
            del content[name]
        del content["optimizer"]
        _restore_moments(moments, state.optimizer)
    state.load_values(content)


def restore_model(weights: Weights, model: nn.Module, source: Path) -> None:
    """Load the model strictly; ValueError names the first differences."""
    _require_fitting(weights, model, source)
    own = model.state_dict()
    model.load_state_dict({name: own[name] for name in own if name not in weights} | weights)


def _require_fitting(weights: Weights, model: nn.Module, source: Path) -> None:
    """ValueError unless names and shapes are the model's, and numbers real where its are."""
    own = model.state_dict()
    # Buffers that follow from the configuration, where a file does not store them.
    derived = {name for name in own if name.endswith(_MAY_LACK) and name not in weights}
    require_same_shapes(
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: tuple(value.shape) for name, value in own.items() if name not in derived},
        f"checkpoint {source}",
    )
    require_same_numbers(weights, own, source)


Moments = dict[Tensor, dict[str, Tensor]]


def _moments(stored: Any, optimizer: Optimizer, source: Path) -> Moments:
    """The moments of each parameter that has some, taken out of an optimizer's stored state.

    ValueError unless they are those of this kind of optimizer, of their parameters' shapes.
    """
    expected = expected_moments(optimizer)
    with one_line_errors(source, "does not fit the optimizer"):
        by_name = all("names" in group for group in stored["param_groups"])
        keys = _parameters(stored["param_groups"], by_name)
        own = _parameters(optimizer.param_groups, by_name)
        if keys.keys() != own.keys():
            raise ValueError("its groups of parameters are others")
        found: Moments = {}
        for name, parameter in own.items():
            key = keys[name]
            moments = {
                name: value
                for name, value in stored["state"].pop(key, {}).items()
                if value is not None  # SGD's before its first update
            }
            if not moments:
                continue  # it never had a gradient
            if set(moments) != expected:
                raise ValueError(
                    f"it holds {', '.join(sorted(moments))}, TRAIN.OPTIMIZER.NAME here keeps "
                    f"{', '.join(sorted(expected))}: go on with the optimizer it was saved with"
                )
            for name, value in moments.items():
                shape = () if name == "step" else parameter.shape
                if not _is_moment(value, shape):
                    raise ValueError(f"{name} is not of shape {tuple(shape)}")
            found[parameter] = moments
    return found


def _parameters(groups: Sequence[Mapping[str, Any]], by_name: bool) -> dict[Any, Any]:
    """Parameters of an optimizer's groups by their names, else by group and place."""
    found: dict[Any, Any] = {}
    for index, group in enumerate(groups):
        places = [(index, place) for place in range(len(group["params"]))]
        names = group["names"] if by_name else places
        found |= dict(zip(names, group["params"], strict=True))
    return found


def _is_moment(value: object, shape: Sequence[int]) -> bool:
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
        return False
    # The updates that it has seen, where it is one number.
    return value.is_floating_point() and (value.ndim > 0 or 0 <= float(value) < LARGEST_NUMBER)


def _restore_moments(moments: Moments, optimizer: Optimizer) -> None:
    """Copy moments into tensors of the optimizer's own, one after the other."""
    for group in optimizer.param_groups:
        on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            stored = moments.pop(parameter, {})
            for name in list(stored):
                if name == "step":
                    device = parameter.device if on_device else torch.device("cpu")
                    own = torch.zeros((), device=device)
                else:
                    own = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter][name] = own.detach().copy_(stored.pop(name))
