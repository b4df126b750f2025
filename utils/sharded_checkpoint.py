"""Checkpoints of sharded models: a folder, to which every process writes its part.

Tensors lie in torch.distributed.checkpoint's format, and can be read by any number of processes;
everything else in one ordinary file beside them. Reading runs no code from any of them.
"""

import os
import shutil
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

from utils.checks import require_same_shapes
from utils.distributed import barrier, rank
from utils.files import checksum, sync_folder
from utils.sharded_contents import CHECKSUM_SUFFIX, read_contents, tensors_below

SUFFIX = ".sharded"
REST = "rest.pth"


class _Reader(checkpoint.FileSystemReader):
    """torch's reader, with a table of contents that was read and checked here."""

    def __init__(self, folder: Path, contents: Metadata) -> None:
        super().__init__(folder)
        self.contents = contents

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What `read_contents` returned."""
        return self.contents


class _Writer(checkpoint.FileSystemWriter):
    """torch's writer, which leaves the checksum of each piece beside it."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this process's pieces."""
        done = super().write_data(plan, planner)
        for name in {result.storage_data.relative_path for result in done.value()}:
            path = Path(self.path, name)
            Path(f"{path}{CHECKSUM_SUFFIX}").write_text(f"{checksum(path).hexdigest()}  {name}\n")
        return done


def save_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    write_rest: Callable[[Path], None],
    group: Any,
    executor: Executor,
) -> Future[None]:
    """Copy tensors to host memory and write them in the background; call it in all processes.

    `write_rest` writes the ordinary file; the first process calls it. `group` is one of gloo's that
    nothing else uses. The future's ValueError tells that it could not be written; else the
    checkpoint is whole when the first process's future is done.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    written: Any = checkpoint.async_save(
        dict(tensors), storage_writer=_Writer(temporary), process_group=group
    )

    def commit() -> None:
        """Wait for all pieces; the first process then gives the checkpoint its name."""
        try:
            written.result()
        except Exception as error:  # of any process: its reason is in it
            raise ValueError(f"{folder} cannot be written: {_reason(error)}") from None
        if rank() == 0:
            write_rest(temporary / REST)
            earlier = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(earlier, ignore_errors=True)
            if folder.exists():
                os.replace(folder, earlier)
            os.replace(temporary, folder)
            sync_folder(folder.parent)
            shutil.rmtree(earlier, ignore_errors=True)

    return executor.submit(commit)


def load_tensors(folder: Path, contents: Metadata, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, sharded or not, in place, by name."""
    alone = not distributed.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            checkpoint.load(tensors, storage_reader=_Reader(folder, contents), no_dist=alone)
    except Exception as error:  # broken bytes can raise anything
        raise ValueError(f"checkpoint {folder} cannot be read: {_reason(error)}") from None


def training_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of a training state: "model.NAME" and "optimizer.NAME.MOMENT"."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    return tensors


def restore_tensors(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Load model and optimizer; ValueError where the checkpoint does not fit."""
    contents = read_contents(folder)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored, moments = (
        {name: tuple(entry.size) for name, entry in tensors_below(contents, prefix).items()}
        for prefix in ("model.", "optimizer.")
    )
    require_same_shapes(stored, own, f"checkpoint {folder}")
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        for key in (key for key in moments if key.startswith(f"{name}.")):
            whole = moments[key] == tuple(parameter.shape)
            state[key.removeprefix(f"{name}.")] = (
                torch.zeros_like(parameter, requires_grad=False)
                if whole
                else torch.zeros(moments[key], device=parameter.device)
            )
    load_tensors(folder, contents, training_tensors(model, optimizer))


def _reason(error: BaseException) -> str:
    """The last line of the first process's failure."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return (str(error).strip().split("\n") or [type(error).__name__])[0][:300]
