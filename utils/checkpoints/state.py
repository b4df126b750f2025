"""The state of a run, its conversion to a checkpoint's content, and its restoration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from lr_scheduler import Scheduler
from optimizer import expected_moments
from utils.checkpoints.reading import Content, Weights, model_weights, require_same_numbers
from utils.checkpoints.sharded import restore_tensors
from utils.config import to_plain
from utils.messages import reason_of, require_same_shapes
from utils.processes.sharding import is_sharded

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3  # slow to import

LARGEST_NUMBER = 2**53
_MAY_LACK = "relative_coords_table"

# Figures of each process: sums over an epoch's good updates, counts of its updates by outcome, and
# the state of a row of bad updates. A checkpoint holds them in this order.
EPOCH_FIGURES = ("loss", "grad_norm", "good", "skipped", "adjusted")
STREAK_FIGURES = ("skipped_in_a_row", "first_skipped", "adjusted_in_a_row")


@dataclass
class Position:
    """The progress of a run, which nothing else counts.

    All epochs before `epoch` are complete, with their validation; `images` images of `epoch` are
    trained on; `update` counts all updates since the run began. The learning-rate schedule is
    `offset` updates ahead, after a resume with another number of images per update or other data.
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
        """Move to the beginning of the next epoch."""
        self.epoch, self.images = self.epoch + 1, 0

    def restart_epoch(self) -> None:
        """Move data and schedule to the beginning of the epoch; the updates stay counted."""
        self.offset -= self.images // self.images_per_update
        self.images = 0


@dataclass
class Best:
    """The best top-1 accuracy so far, in percent, and its epoch."""

    acc1: float = -1.0
    epoch: int = -1

    def update(self, acc1: float, epoch: int) -> bool:
        """Record an evaluation; return whether it is better than all before."""
        is_best = acc1 > self.acc1
        if is_best:
            self.acc1, self.epoch = acc1, epoch
        return is_best


@dataclass(frozen=True)
class Data:
    """What a run learns from: the number of pictures, digests of them and of the target's file.

    The pictures' digest is of names, order and labels; `target` is '' where no file defines it.
    """

    images: int
    digest: str
    target: str = ""


@dataclass
class TrainState:
    """The state that a checkpoint holds; `best` and `average` only where a run fine-tunes.

    `figures` are those of the epoch so far: per process a row of EPOCH_FIGURES and STREAK_FIGURES.
    `data` is known after `resume`.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    position: Position
    best: Best | None = None
    average: "ModelEmaV3 | None" = None
    figures: list[list[float]] = field(default_factory=list)
    data: Data | None = None

    def restart_epoch(self) -> None:
        """Begin the present epoch anew, and drop its figures."""
        self.position.restart_epoch()
        number = len(EPOCH_FIGURES)
        self.figures = [[0.0] * number + row[number:] for row in self.figures]

    def models(self) -> dict[str, nn.Module]:
        """The trained model and the model with averaged weights, if any, by their keys."""
        models = {"model": self.model}
        return models if self.average is None else models | {"model_ema": self.average.module}

    def values(self) -> Content:
        """Everything but tensors, under the keys of a checkpoint."""
        at = self.position
        values: Content = {
            "lr_scheduler": {
                "num_steps": at.update,
                "offset": at.offset,
                # Of the last update; a resume with another schedule names it.
                "lr": float(max(self.scheduler.rates(at.place_in_schedule - 1))),
            },
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
        """Restore the output of `values` from a validated checkpoint."""
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
            self.best = Best(float(content["best"]["acc1"]), content["best"]["epoch"])


def training_content(state: TrainState, cfg: CfgNode, classes: Sequence[str] = ()) -> Content:
    """The content of a checkpoint: plain values and the state's own tensors, not copies.

    Without the tensors of a sharded model. SEED and the update stand for the random states, which
    follow from them.
    """
    content: Content = {}
    if not is_sharded(state.model):
        content |= {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
    content |= state.values()
    if state.average is not None:
        content["model_ema"] = state.average.module.state_dict()
    if state.data is not None:
        content["data"] = asdict(state.data)
    # `epoch` is the last complete one, from 0; -1 before the first.
    content |= {"epoch": state.position.epoch - 1, "update": state.position.update}
    return content | {"seed": cfg.SEED, "config": to_plain(cfg), "classes": list(classes)}


def restore(content: Content, state: TrainState, source: Path) -> None:
    """Copy the content that `load_checkpoint` read into the state, and remove its tensors.

    Tensors are released after copying, so that memory never holds more than the state and the
    file's content. Settings of the optimizer (weight decay, betas) remain those of the
    configuration; only its moments are restored. ValueError names the first differences; the state
    is then unchanged.
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
    """ValueError where names or shapes differ from the model's, or only one is floating-point."""
    own = model.state_dict()
    # Buffers that the model computes from the configuration, where a file lacks them.
    derived = {name for name in own if name.endswith(_MAY_LACK) and name not in weights}
    require_same_shapes(
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: tuple(value.shape) for name, value in own.items() if name not in derived},
        f"checkpoint {source}",
    )
    require_same_numbers(weights, own, source)


Moments = dict[Tensor, dict[str, Tensor]]


def _moments(stored: Any, optimizer: Optimizer, source: Path) -> Moments:
    """Remove and return each parameter's moments, if any, from an optimizer's stored state.

    ValueError unless they are those of this kind of optimizer, with their parameters' shapes.
    """
    try:
        return _matching_moments(stored, optimizer)
    except Exception as error:  # a file can hold anything
        raise ValueError(
            f"checkpoint {source} does not fit the optimizer: {reason_of(error)}"
        ) from None


def _matching_moments(stored: Any, optimizer: Optimizer) -> Moments:
    expected = expected_moments(optimizer)
    by_name = all("names" in group for group in stored["param_groups"])
    keys = _parameters(stored["param_groups"], by_name)
    own = _parameters(optimizer.param_groups, by_name)
    if keys.keys() != own.keys():
        raise ValueError("its parameter groups differ")
    found: Moments = {}
    for name, parameter in own.items():
        moments = {
            name: value
            for name, value in stored["state"].pop(keys[name], {}).items()
            if value is not None  # as SGD stores before its first update
        }
        if not moments:
            continue  # the parameter never had a gradient
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
    """Parameters of an optimizer's groups by name, else by their indices of group and place."""
    found: dict[Any, Any] = {}
    for index, group in enumerate(groups):
        places = [(index, place) for place in range(len(group["params"]))]
        names = group["names"] if by_name else places
        found |= dict(zip(names, group["params"], strict=True))
    return found


def _is_moment(value: object, shape: Sequence[int]) -> bool:
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
        return False
    # A single number is the count of updates.
    return value.is_floating_point() and (value.ndim > 0 or 0 <= float(value) < LARGEST_NUMBER)


def _restore_moments(moments: Moments, optimizer: Optimizer) -> None:
    """Copy moments one by one into new tensors of the optimizer, and release them."""
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
