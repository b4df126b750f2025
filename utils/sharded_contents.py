"""A sharded checkpoint's table of contents, read without running code, and checked."""

import math
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from utils.distributed import any_process, rank, world_size
from utils.files import checksum
from utils.unpickle import RestrictedUnpickler

CHECKSUM_SUFFIX = ".sha256"
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


def verify(folder: Path, contents: Metadata) -> None:
    """ValueError, in all processes, where a piece is not what was written.

    Each process reads its share of them; a piece without a checksum is taken as it is.
    """
    names = sorted({piece.relative_path for piece in contents.storage_data.values()})
    damaged = [name for name in names[rank() :: world_size()] if _is_damaged(folder / name)]
    if any_process(bool(damaged)):
        name = damaged[0] if damaged else "that another process reads"
        raise ValueError(f"checkpoint {folder}: its piece {name} is damaged (checksum)")


def _is_damaged(path: Path) -> bool:
    noted = path.with_name(f"{path.name}{CHECKSUM_SUFFIX}")
    return noted.is_file() and noted.read_text(errors="replace")[:64] != checksum(path).hexdigest()
