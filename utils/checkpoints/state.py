"""Checkpoints: what a run goes on from, written whole or not at all, checked when it is read."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from optimizer import expected_moments
from utils.checkpoints.names import starts_in
from utils.checkpoints.reading import (
    Weights,
    model_weights,
    read_checkpoint,
    require_same_numbers,
    verify_checkpoint,
)
from utils.checkpoints.sharded import REST, restore_tensors
from utils.checkpoints.sharded_contents import contents_here, read_contents, verify
from utils.config import to_plain
from utils.files import DamagedError, write_whole
from utils.messages import require_same_shapes, shown
from utils.processes.sharding import is_sharded

State = dict[str, Any]
_LARGEST_NUMBER = 2**53
_MAY_LACK = "relative_coords_table"


def save_checkpoint(path: Path, state: State) -> None:
    """Write a file, whole or not at all.

    ValueError where that is impossible; an earlier file of that name is then untouched.
    """
    write_whole(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> State:
    """Read a training checkpoint on the CPU without running code from it.

    Of a sharded one all but the tensors, which must be there. DamagedError where it is proven
    damaged, ValueError where it cannot be read, is of another program or holds impossible values.
    """
    missing = {"lr_scheduler", "scaler", "epoch", "update"}
    state: State
    if path.is_dir():
        verify(path, read_contents(path))
        state = read_checkpoint(path / REST)
    else:
        state = read_checkpoint(path)
        missing |= {"model", "optimizer"}
    missing -= set(state) if isinstance(state, dict) else set()
    if missing:
        raise ValueError(
            f"checkpoint {path} is not a training checkpoint of this project: "
            f"it holds no {', '.join(sorted(missing))} (fine-tuning starts from weights alone: "
            "main_finetune.py --pretrained)"
        )
    _require_possible(state, path)
    return state


def read_back(path: Path, whole: bool) -> None:
    """Read what was just written: all of it as a resume does, or only its checksums.

    For the process that has written it, beside others that train. ValueError where a resume could
    not read it.
    """
    try:
        if path.is_dir():  # whose pieces were read for their checksums
            contents_here(path)
            verify_checkpoint(path / REST)
        elif whole:
            load_checkpoint(path)
        else:
            verify_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"what was just written cannot be read back: {error}") from None


def newest_checkpoint(
    folder: Path, warn: Callable[[str], None]
) -> tuple[Path, State] | tuple[None, None]:
    """The latest checkpoint of a folder that is not damaged; `warn` is told of those that are."""
    for path in starts_in(folder):
        try:
            return path, load_checkpoint(path)
        except DamagedError as error:
            warn(f"{error}; passed over")
    return None, None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_NUMBER


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST_NUMBER  # NaN is not less


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "a section": lambda value: isinstance(value, dict),
    "a count": _is_count,
    "an epoch": lambda value: type(value) is int and -1 <= value < _LARGEST_NUMBER,
    "a whole number": lambda value: type(value) is int and abs(value) < _LARGEST_NUMBER,
    "a number": _is_number,
    "names": _is_text_list,
}
# What values must be, where a checkpoint has them; a section comes before what it holds.
_VALUES = {
    "epoch": "an epoch",
    "update": "a count",
    "seed": "a count",
    "classes": "names",
    "config": "a section",
    "lr_scheduler": "a section",
    "lr_scheduler.num_steps": "a count",
    "lr_scheduler.offset": "a whole number",
    "progress": "a section",
    "progress.epoch": "a count",
    "progress.images": "a count",
    "progress.images_per_update": "a count",
    "best": "a section",
    "best.acc1": "a number",
    "best.epoch": "an epoch",
    "scaler": "a section",
    "scaler.scale": "a number",
    "scaler.growth_factor": "a number",
    "scaler.backoff_factor": "a number",
    "scaler.growth_interval": "a count",
    "scaler._growth_tracker": "a count",
}


def _require_possible(state: State, path: Path) -> None:
    """ValueError names the first value that no run has saved."""
    for name, kind in _VALUES.items():
        section, _, key = name.rpartition(".")
        holder = state.get(section, {}) if section else state
        if key in holder and not _KINDS[kind](holder[key]):
            raise ValueError(f"checkpoint {path}: {name} is {shown(holder[key])}, expected {kind}")


def training_state(parts: Mapping[str, Any], cfg: CfgNode, classes: Sequence[str] = ()) -> State:
    """All that a run goes on from, as plain values and its own tensors, not copies of them.

    Of a sharded model all but the tensors. The random states follow from SEED and the update, so
    these two numbers stand for them.
    """
    tensors = ("model", "optimizer") if is_sharded(parts["model"]) else ()
    state: State = {key: part.state_dict() for key, part in parts.items() if key not in tensors}
    # The last complete epoch, from 0; -1 before the first.
    state |= {"epoch": parts["progress"].epoch - 1, "update": parts["lr_scheduler"].num_steps}
    return state | {"seed": cfg.SEED, "config": to_plain(cfg), "classes": list(classes)}


def restore(state: State, parts: Mapping[str, Any], source: Path) -> None:
    """Copy what `load_checkpoint` read into every part, and take it out of `state`.

    Tensors are copied one by one into those of the parts and released, so that at no time there is
    more than the parts and the file's content. Settings of the optimizer (weight decay, betas) stay
    those of the configuration; only its moments are read. ValueError names the first differences;
    nothing is changed then.
    """
    models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    if source.is_dir():
        restore_tensors(source, parts["model"], parts["optimizer"])
    else:
        for name, model in models.items():
            _require_fitting(model_weights(state, source, (name,)), model, source)
        moments = _moments(state["optimizer"], parts["optimizer"], source)
        for name, model in models.items():
            restore_model(model_weights(state, source, (name,)), model, source)
            del state[name]
        del state["optimizer"]
        _restore_moments(moments, parts["optimizer"])
    for name, part in parts.items():
        if not isinstance(part, nn.Module | Optimizer) and state[name]:
            with _one_line_errors(name, source):
                part.load_state_dict(state[name])


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


def _moments(state: Any, optimizer: Optimizer, source: Path) -> Moments:
    """The moments of each parameter that has some, taken out of an optimizer's stored state.

    ValueError unless they are those of this kind of optimizer, of their parameters' shapes.
    """
    expected = expected_moments(optimizer)
    with _one_line_errors("the optimizer", source):
        by_name = all("names" in group for group in state["param_groups"])
        keys = _parameters(state["param_groups"], by_name)
        own = _parameters(optimizer.param_groups, by_name)
        if keys.keys() != own.keys():
            raise ValueError("its groups of parameters are others")
        found: Moments = {}
        for name, parameter in own.items():
            key = keys[name]
            moments = {
                name: value
                for name, value in state["state"].pop(key, {}).items()
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


def _is_moment(value: Any, shape: Sequence[int]) -> bool:
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
        return False
    # The updates that it has seen, where it is one number.
    return value.is_floating_point() and (value.ndim > 0 or 0 <= float(value) < _LARGEST_NUMBER)


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


@contextlib.contextmanager
def _one_line_errors(what: str, source: Path) -> Iterator[None]:
    """Every failure inside as a ValueError of one line: a file's content can raise anything."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"checkpoint {source} does not fit {what}: {reason}") from None
