"""Checkpoints of sharded models: a folder, to which every process writes its part.

Tensors are in torch.distributed.checkpoint's format, which any number of processes can read;
everything else is in one ordinary file beside them. Reading runs no code from any of them.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import Metadata
from torch.optim import Optimizer

from optimizer import expected_moments
from utils.checkpoints.names import SHARDED_SUFFIX
from utils.checkpoints.sharded_contents import (
    METADATA,
    REST,
    read_contents,
    tensors_below,
    write_checksum,
)
from utils.files import remove, sync_folder
from utils.messages import reason_of, require_same_shapes, shown
from utils.processes.group import rank, together

# A checkpoint NAME is written as .NAME.tmp and renamed to .NAME.whole, then to NAME. An earlier one
# of that name is moved away between the two renames, so that at any moment one of them exists.
_PART, _WHOLE = ".tmp", ".whole"


class _Reader(checkpoint.FileSystemReader):
    """torch's reader, with a table of contents that `read_contents` read and checked."""

    def __init__(self, folder: Path, contents: Metadata) -> None:
        super().__init__(folder)
        self.contents = contents

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """What `read_contents` returned."""
        return self.contents


class _Writer(checkpoint.FileSystemWriter):
    """torch's writer, which also writes a checksum file beside each file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this process's pieces and their checksums."""
        if self.gpu is not None:  # this is another thread, which would start to use GPU 0
            torch.cuda.set_device(self.gpu)
        done = super().write_data(plan, planner)
        for name in {result.storage_data.relative_path for result in done.value()}:
            write_checksum(Path(self.path, name))
        return done

    def finish(self, metadata: Metadata, results: Any) -> None:
        """Write the table of contents in the first process, when all pieces are written."""
        super().finish(metadata, results)
        write_checksum(Path(self.path, METADATA))


def save_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    write_rest: Callable[[Path], None],
    group: distributed.ProcessGroup | None,
    executor: Executor,
) -> Future[None]:
    """Copy tensors to host memory and write them in the background; call it in all processes.

    `write_rest` writes the ordinary file; the first process calls it. `group` is a gloo group that
    nothing else uses. The future raises ValueError where writing fails; otherwise the checkpoint is
    complete when the first process's future is done.
    """
    part = _hidden(folder, _PART)

    def prepare() -> None:
        """Make an empty folder in the first process."""
        if rank() == 0:
            _complete(folder)
            part.mkdir(parents=True)

    together(f"{folder} cannot be written", prepare)
    written: Any = checkpoint.async_save(
        dict(tensors), storage_writer=_Writer(part), process_group=group
    )

    def commit() -> None:
        """Wait for all pieces; the first process then renames the checkpoint."""
        try:
            written.result()
            if rank() == 0:
                write_rest(part / REST)
                sync_folder(part)
                os.replace(part, _hidden(folder, _WHOLE))
                _complete(folder)
        except (checkpoint.CheckpointException, OSError) as error:  # the first: BaseException
            raise ValueError(f"{folder} cannot be written: {_reason(error)}") from None

    return executor.submit(commit)


def complete_saves(folder: Path) -> None:
    """Rename complete sharded checkpoints that a killed run left, and remove incomplete ones.

    For the first process of the run that has locked the folder, before it looks for checkpoints.
    """
    for state in (_PART, _WHOLE):
        for path in folder.glob(f".*{SHARDED_SUFFIX}{state}"):
            _complete(path.with_name(path.stem[1:]))


def _complete(folder: Path) -> None:
    part, whole = _hidden(folder, _PART), _hidden(folder, _WHOLE)
    remove(part)
    if whole.exists():
        sync_folder(folder.parent)
        if folder.exists():
            os.replace(folder, part)
        os.replace(whole, folder)
        sync_folder(folder.parent)
        remove(part)


def _hidden(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}{state}")


def load_tensors(folder: Path, contents: Metadata, tensors: dict[str, Tensor]) -> None:
    """Load tensors in place by name, sharded or not."""
    alone = not distributed.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            checkpoint.load(tensors, storage_reader=_Reader(folder, contents), no_dist=alone)
    except checkpoint.CheckpointException as error:
        raise ValueError(f"checkpoint {folder} cannot be read: {_reason(error)}") from None


def training_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of a training state: "model.NAME" and "optimizer.NAME.MOMENT"."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    return tensors


def restore_tensors(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Load model and optimizer in place; ValueError where the checkpoint does not fit."""
    contents = read_contents(folder)
    moments = _moments_to_fill(folder, contents, model, optimizer)
    own = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, tensors in moments.items():
        own |= {f"optimizer.{name}.{key}": value for key, value in tensors.items()}
    stored = tensors_below(contents, "")
    require_same_shapes(
        {name: tuple(entry.size) for name, entry in stored.items()},
        {name: tuple(value.shape) for name, value in own.items()},
        f"checkpoint {folder}",
    )
    for name, value in own.items():
        kind = stored[name].properties.dtype
        if kind != value.dtype:
            raise ValueError(f"checkpoint {folder}: {name} is {kind}, expected {value.dtype}")
    load_tensors(folder, contents, own)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter].update(moments.get(name, {}))


def _moments_to_fill(
    folder: Path, contents: Metadata, model: nn.Module, optimizer: Optimizer
) -> dict[str, dict[str, Tensor]]:
    """Tensors to fill with each parameter's stored moments; ValueError for another optimizer's.

    A parameter that never had a gradient has none.
    """
    stored: dict[str, list[str]] = {}
    for name in tensors_below(contents, "optimizer."):
        parameter_name, _, moment = name.rpartition(".")
        stored.setdefault(parameter_name, []).append(moment)
    wanted = expected_moments(optimizer)
    others = {frozenset(moments) for moments in stored.values()} - {wanted}
    if others:
        found, own = (shown(sorted(names)) for names in (frozenset().union(*others), wanted))
        raise ValueError(
            f"checkpoint {folder} holds the moments {found}, {type(optimizer).__name__} keeps "
            f"{own}: give the TRAIN.OPTIMIZER.NAME of that run, or another --tag or --output"
        )
    return {
        name: {moment: _moment(parameter, moment, optimizer) for moment in stored[name]}
        for name, parameter in model.named_parameters()
        if name in stored
    }


def _moment(parameter: nn.Parameter, name: str, optimizer: Optimizer) -> Tensor:
    """The optimizer's own tensor, else a zero one as the optimizer would make it."""
    earlier = optimizer.state[parameter].get(name)
    if isinstance(earlier, Tensor):
        return earlier
    if name == "step":
        return torch.zeros((), device=parameter.device)
    return torch.zeros_like(parameter, requires_grad=False)


def _reason(error: BaseException) -> str:
    """One line for the first failure that torch collected, else for the error itself."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return reason_of(error)
