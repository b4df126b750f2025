"""Checkpoints of sharded models: a folder, to which every process writes its part.

Tensors lie in torch.distributed.checkpoint's format, and can be read by any number of processes;
everything else in one ordinary file beside them. Reading runs no code from any of them.
"""

import math
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.optim import Optimizer

from utils.checks import require_same_shapes
from utils.distributed import barrier, rank
from utils.files import sync_folder
from utils.unpickle import RestrictedUnpickler

SUFFIX = ".sharded"
REST = "rest.pth"
_METADATA = ".metadata"
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "ChunkStorageMetadata"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
}


class _Record:
    """Stands for an object of torch's table of contents: what was pickled, and no behaviour."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _listed() -> dict[tuple[str, str], Any]:
    """All that a table of contents may name, and what stands for it.

    Tensors only: torch would unpickle other content. New classes for every file, so that a pickle
    that changes a class changes nothing else.
    """
    listed: dict[tuple[str, str], Any] = {
        (module, name): type(name, (_Record,), {})
        for module, names in _CLASSES.items()
        for name in names
    }
    listed |= {("torch", name): getattr(torch, name) for name in _DTYPES}
    listed["torch", "Size"] = tuple
    listed["torch.serialization", "_get_layout"] = lambda name: name
    return listed


def _contents_of(record: _Record) -> Metadata:
    """Torch's objects from what was read."""
    tensors = {
        str(name): _tensor_entry(entry.state)
        for name, entry in record.state["state_dict_metadata"].items()
    }
    pieces = {}
    for key, piece in record.state["storage_data"].items():
        place, offset = piece.state, key.state["offset"]
        index = MetadataIndex(
            str(key.state["fqn"]), None if offset is None else _size(offset), key.state["index"]
        )
        name, start, length = place["relative_path"], place["offset"], place["length"]
        pieces[index] = filesystem._StorageInfo(str(name), _natural(start), _natural(length))
    return Metadata(dict(tensors), storage_data=pieces)


def _tensor_entry(state: dict[str, Any]) -> TensorStorageMetadata:
    dtype = state["properties"].state[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{dtype} is no type of numbers")
    chunks = [
        ChunkStorageMetadata(_size(chunk.state["offsets"]), _size(chunk.state["sizes"]))
        for chunk in state["chunks"]
    ]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(state["size"]), chunks)


def _size(sides: Any) -> torch.Size:
    return torch.Size(_natural(side) for side in sides)


def _natural(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


class _Reader(checkpoint.FileSystemReader):
    """torch's reader, with a table of contents that was read and checked here."""

    def __init__(self, folder: Path, contents: Metadata) -> None:
        super().__init__(folder)
        self.contents = contents

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What `read_contents` returned."""
        return self.contents


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], write_rest: Any) -> None:
    """Write a checkpoint, whole or not at all; call it in all processes.

    `write_rest` writes the ordinary file; the first process calls it.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    try:
        checkpoint.save(dict(tensors), checkpoint_id=temporary)
    except checkpoint.api.CheckpointException as error:
        raise ValueError(f"checkpoint {folder} cannot be written: {_reason(error)}") from None
    if rank() == 0:
        write_rest(temporary / REST)
        earlier = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(earlier, ignore_errors=True)
        if folder.exists():
            os.replace(folder, earlier)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
        shutil.rmtree(earlier, ignore_errors=True)
    barrier()


def read_contents(folder: Path) -> Metadata:
    """A checkpoint's table of contents; ValueError where it or a piece is missing or broken."""
    try:
        with open(folder / _METADATA, "rb") as file:
            contents = _contents_of(RestrictedUnpickler(file, _listed()).load())
        pieces = contents.storage_data.values()
        ends: dict[str, int] = {}
        for piece in pieces:
            end = ends.get(piece.relative_path, 0)
            ends[piece.relative_path] = max(end, piece.offset + piece.length)
        entries = tensors_below(contents, "").values()
        size = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in entries)
    except Exception as error:  # broken bytes can raise anything
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"checkpoint {folder} has no usable {_METADATA}: {reason}") from None
    for name, end in sorted(ends.items()):
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"checkpoint {folder} is incomplete: its piece {name} is missing")
        if path.stat().st_size < end:
            raise ValueError(f"checkpoint {folder} is incomplete: its piece {name} ends too early")
    if size > sum(ends.values()):
        raise ValueError(f"checkpoint {folder}: its tensors claim to be larger than its pieces")
    return contents


def tensors_below(contents: Metadata, prefix: str) -> dict[str, TensorStorageMetadata]:
    """What is stored of the tensors whose names begin so; names without the prefix."""
    found: dict[str, Any] = contents.state_dict_metadata
    return {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}


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
