"""A sharded checkpoint's table of contents, read without running code, and checked."""

import contextlib
import hashlib
import io
import math
import pickle
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from utils.files import DamagedError, checksum, write_whole
from utils.messages import reason_of, shown
from utils.processes.group import rank, together, world_size

METADATA = ".metadata"
REST = "rest.pth"
_CHECKSUM_SUFFIX = ".sha256"
_PIECE = re.compile(r"__[0-9]{1,9}_[0-9]{1,9}\.distcp")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
_MOST_SIDES = 8
# What no table of contents has: bytes whose length is merely claimed, calls with keywords or of
# what lies below a mark, and what hashes its parts, which takes for ever where they are nested.
_REFUSED = (
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT),
)


class _Object:
    """What a pickle names: by which name, made from which arguments, with which state."""

    def __init__(self, name: str, arguments: Sequence[Any] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None


class _Unpickler(pickle._Unpickler):  # the one in Python: no opcode of it claims memory
    """Reads a pickle and calls nothing that it names: every object of it is an `_Object`."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in _REFUSED
    }

    def find_class(self, module: str, name: str) -> Any:
        """Stands for `module.name`; UnpicklingError where no table of contents names it."""
        if module.split(".")[0] not in ("torch", "pathlib"):
            raise pickle.UnpicklingError(f"it holds {shown(f'{module}.{name}')}, not plain data")
        return _Object(name)

    def load_call(self) -> None:
        """An object is noted, not made."""
        arguments = self.stack.pop()
        self.stack[-1] = _Object(self.stack[-1].name, arguments)

    def load_build(self) -> None:
        """Its state is noted, not set."""
        state = self.stack.pop()
        self.stack[-1].state = state  # only an `_Object` has one

    def load_setitem(self) -> None:
        """One item of a dict."""
        _require_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]  # typeshed lacks it

    def load_setitems(self) -> None:
        """Items of a dict."""
        _require_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    dispatch |= {pickle.REDUCE[0]: load_call, pickle.NEWOBJ[0]: load_call}
    dispatch |= {pickle.BUILD[0]: load_build}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def _require_keys(keys: list[object]) -> None:
    if not all(isinstance(key, str | _Object) for key in keys):
        raise pickle.UnpicklingError("a key of it is no name")


def read_contents(folder: Path) -> Metadata:
    """A checkpoint's table of contents; call it in all processes.

    DamagedError where it or a piece is missing or broken, ValueError where it cannot be read.
    """
    return together(f"checkpoint {folder} cannot be read", lambda: contents_here(folder))


def contents_here(folder: Path) -> Metadata:
    """The same, for one process that asks no other."""
    _length(folder, METADATA)
    content = (folder / METADATA).read_bytes()
    is_as_written = _has_right_checksum(folder, METADATA, content)
    try:
        contents = _contents_of(_Unpickler(io.BytesIO(content)).load(), len(content))
        ends = _ends_of_pieces(contents)
    except MemoryError:
        raise
    except Exception as error:  # broken bytes can raise anything
        kind = ValueError if is_as_written else DamagedError  # the first: of another torch
        raise kind(f"checkpoint {folder} has no usable {METADATA}: {reason_of(error)}") from None
    for name, end in {**ends, REST: 0}.items():
        if _length(folder, name) < end:
            raise DamagedError(f"checkpoint {folder} is incomplete: its {name} ends too early")
    return contents


def _length(folder: Path, name: str) -> int:
    """Bytes of a file; DamagedError where there is none."""
    with contextlib.suppress(FileNotFoundError):
        found = (folder / name).stat()
        if stat.S_ISREG(found.st_mode):
            return found.st_size
    raise DamagedError(f"checkpoint {folder} is incomplete: its {name} is missing")


def _contents_of(table: _Object, size: int) -> Metadata:
    """Torch's objects from what was read from so many bytes; ValueError where it is not whole."""
    entries: Mapping[Any, Any] = table.state["state_dict_metadata"]
    if sum(len(entry.state["chunks"]) for entry in entries.values()) > size:
        raise ValueError("it repeats the same parts again and again")
    tensors = {_text(name): _tensor_entry(entry.state) for name, entry in entries.items()}
    pieces = {}
    for key, piece in table.state["storage_data"].items():
        index = MetadataIndex(_text(key.state["fqn"]), _size(key.state["offset"]))
        name = _text(piece.state["relative_path"])
        if not _PIECE.fullmatch(name):
            raise ValueError(f"{shown(name)} is no name of a piece")
        start, length = (_natural(piece.state[field]) for field in ("offset", "length"))
        pieces[index] = filesystem._StorageInfo(name, start, length)
    for name, entry in tensors.items():
        _require_all_parts(name, entry, pieces)
    return Metadata(dict(tensors), storage_data=pieces)


def _tensor_entry(state: Mapping[str, Any]) -> TensorStorageMetadata:
    kind = state["properties"].state[0].name
    if kind not in _DTYPES:
        raise ValueError(f"{shown(kind)} is no type of numbers")
    chunks = [
        ChunkStorageMetadata(_size(chunk.state["offsets"]), _size(chunk.state["sizes"]))
        for chunk in state["chunks"]
    ]
    dtype: torch.dtype = getattr(torch, kind)
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(state["size"]), chunks)


def _require_all_parts(
    name: str, entry: TensorStorageMetadata, pieces: Mapping[MetadataIndex, object]
) -> None:
    """ValueError unless a tensor's parts are all its rows, and each of them lies in a piece."""
    parts = [chunk for chunk in entry.chunks if math.prod(chunk.sizes)]
    whole = sum(math.prod(part.sizes) for part in parts) == math.prod(entry.size)
    place = [0] * len(entry.size)
    for part in sorted(parts, key=lambda part: part.offsets):
        whole &= MetadataIndex(name, part.offsets) in pieces
        whole &= list(part.offsets) == place and part.sizes[1:] == entry.size[1:]
        place[:1] = [start + rows for start, rows in zip(place[:1], part.sizes, strict=False)]
    if not whole:
        raise ValueError(f"a part of {shown(name)} is missing")


def _size(sides: Any) -> torch.Size:
    """Of what stands for a torch.Size, or of a tuple."""
    if isinstance(sides, _Object):
        (sides,) = sides.arguments
    if not isinstance(sides, tuple | list) or len(sides) > _MOST_SIDES:
        raise ValueError(f"{shown(sides)} is no size")
    return torch.Size([_natural(side) for side in sides])


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{shown(value)} is no size")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is no name")
    return value


def _ends_of_pieces(contents: Metadata) -> dict[str, int]:
    """How many bytes of each piece hold tensors; ValueError where that is not one after another."""
    ends: dict[str, int] = {}
    places = contents.storage_data.values()
    for place in sorted(places, key=lambda place: (place.relative_path, place.offset)):
        if place.offset != ends.get(place.relative_path, 0):
            raise ValueError(f"what lies in {place.relative_path} is not one after another")
        ends[place.relative_path] = place.offset + place.length
    entries = tensors_below(contents, "").values()
    size = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in entries)
    if size > sum(ends.values()):
        raise ValueError("its tensors claim to be larger than its pieces")
    return ends


def tensors_below(contents: Metadata, prefix: str) -> dict[str, TensorStorageMetadata]:
    """What is stored of the tensors whose names begin so; names without the prefix."""
    found: dict[str, Any] = contents.state_dict_metadata
    return {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}


def verify(folder: Path, contents: Metadata) -> None:
    """DamagedError, in all processes, where a piece is not what was written.

    Each process reads its share of them; call it in all.
    """
    names = sorted({piece.relative_path for piece in contents.storage_data.values()})
    own = names[rank() :: world_size()]
    cannot = f"checkpoint {folder} cannot be read"
    together(cannot, lambda: [_has_right_checksum(folder, name) for name in own])


def write_checksum(path: Path) -> None:
    """Leave a file's SHA-256 beside it, as sha256sum does."""

    def write(file: IO[bytes]) -> None:
        file.write(f"{checksum(path).hexdigest()}  {path.name}\n".encode())

    write_whole(path.with_name(f"{path.name}{_CHECKSUM_SUFFIX}"), write)


def _has_right_checksum(folder: Path, name: str, content: bytes | None = None) -> bool:
    """Whether a file has a checksum; DamagedError where that is another one than its content's."""
    try:
        noted = (folder / f"{name}{_CHECKSUM_SUFFIX}").read_bytes()
    except FileNotFoundError:
        return False  # of an older checkpoint: taken as it is
    found = checksum(folder / name) if content is None else hashlib.sha256(content)
    if noted[:64] != found.hexdigest().encode():
        raise DamagedError(f"checkpoint {folder}: its {name} is damaged (checksum)")
    return True
