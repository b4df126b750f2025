"""Read a checkpoint from anybody: tensors and plain values come out, no code runs."""

import collections
import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.files import checksum
from utils.unpickle import RestrictedUnpickler

Weights = dict[str, Tensor]

CHECKSUM_PREFIX = b"sha256:"  # in the comment of an archive; its length and it are not counted

# Buffers that models compute themselves; files may hold them.
_RECOMPUTED = ("relative_position_index", "attn_mask")
_OLDER_NAMES = {".rpe_mlp.": ".cpb_mlp."}  # of Swin V2
_OLD_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _ConfigNode(dict[str, Any]):
    """Stands for a pickled yacs.config.CfgNode; its attributes are not used."""

    def __setstate__(self, state: Any) -> None: ...


class _OrderedDict(collections.OrderedDict[Any, Any]):
    """An OrderedDict without the attributes that torch gives one."""

    def __setstate__(self, state: Any) -> None: ...


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A view of a storage, refused where it reaches beyond it or repeats it into a large tensor."""
    if math.prod(size) > len(storage):
        raise ValueError("it holds a tensor that is out of bounds of its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


# All that a pickle may name, and what stands for it here. Nothing else is ever imported.
_DATA: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _OrderedDict,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("yacs.config", "CfgNode"): _ConfigNode,
} | {("torch", name): dtype for name, dtype in _STORAGES.items()}


class _Unpickler(RestrictedUnpickler):
    """Reads plain data and tensors; where their storages come from, a function says."""

    def __init__(self, file: IO[bytes], read_storage: Callable[[Any], Tensor]) -> None:
        super().__init__(file, _DATA)
        self.read_storage = read_storage

    def persistent_load(self, identity: Any) -> Tensor:
        """The storage ("storage", dtype, key, location, length, ...), as a flat tensor."""
        return self.read_storage(identity)


def read_checkpoint(path: str | Path) -> Any:
    """What a file of torch.save, old or new, or a .safetensors file holds, on the CPU.

    A pickled CfgNode becomes a dict. ValueError where the file is missing, broken, no checkpoint,
    or names anything but tensors and plain values.
    """
    path = Path(path)
    with _one_line_errors(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        if not zipfile.is_zipfile(path):
            return _read_old_format(path)
        return _read_archive(path)


def _read_archive(path: Path) -> Any:
    """A zip archive with the pickle as data.pkl and each storage as data/KEY."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("its parts claim to be larger than the file")
        _verify(path, archive.comment)
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive, but not one that torch.save wrote")
        folder = pickles[0].removesuffix("data.pkl")
        storages: dict[str, Tensor] = {}

        def read_storage(identity: Any) -> Tensor:
            """A storage, read when the first tensor names it."""
            _, dtype, key, _, length = identity
            if key not in storages:
                content = bytearray(archive.read(f"{folder}data/{key}"))
                empty = torch.empty(0, dtype=dtype)
                storages[key] = torch.frombuffer(content, dtype=dtype) if content else empty
            return storages[key][:length]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), read_storage).load()


def _verify(path: Path, comment: bytes) -> None:
    """ValueError where a file has a checksum, and another content than that."""
    if not comment.startswith(CHECKSUM_PREFIX):
        return
    found = checksum(path, path.stat().st_size - len(comment) - 2)
    found.update(bytes(2))  # the length of a comment that was not yet there
    if found.hexdigest().encode() != comment.removeprefix(CHECKSUM_PREFIX):
        raise ValueError("it is damaged: its checksum is another than when it was written")


def _read_old_format(path: Path) -> Any:
    """The format before torch 1.6: five pickles (the fourth is the data), then the storages."""
    left = path.stat().st_size
    storages: dict[str, Tensor] = {}

    def read_storage(identity: Any) -> Tensor:
        """Room for a storage, which comes after the pickles; no more than the file can fill."""
        nonlocal left
        _, dtype, key, _, length, view = identity
        if key not in storages:
            left -= length * dtype.itemsize
            if length < 0 or left < 0:
                raise ValueError("its parts claim to be larger than the file")
            storages[key] = torch.empty(length, dtype=dtype)  # filled below
        return storages[key] if view is None else storages[key][view[1] : view[1] + view[2]]

    with open(path, "rb") as file:
        if _Unpickler(file, read_storage).load() != _OLD_MAGIC_NUMBER:
            raise ValueError("it is no file that torch.save wrote")
        *_, state, keys = (_Unpickler(file, read_storage).load() for _ in range(4))
        for key in keys:
            file.read(8)  # the length, which is known
            content = file.read(storages[key].nbytes)
            if len(content) < storages[key].nbytes:
                raise ValueError("it ends too early")
            if content:
                source = torch.frombuffer(bytearray(content), dtype=storages[key].dtype)
                storages[key].copy_(source)
        if set(keys) != set(storages):
            raise ValueError("storages are missing")
    return state


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Every failure inside as a ValueError of one line: broken bytes can raise anything."""
    if path.is_dir() and (path / ".metadata").exists():
        raise ValueError(
            f"checkpoint {path} is a sharded one: make one file of its weights first "
            f"(python -m tools.export --consolidate {path})"
        )
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist" + (" as a file" * path.exists()))
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"checkpoint {path} cannot be read: {reason}") from None


def model_weights(
    state: Any, source: str | Path, keys: Sequence[str] = ("model_ema", "model")
) -> Weights:
    """The parameters in what `read_checkpoint` returned, recomputed buffers left out.

    They are below the first of `keys` that is there (averaged weights win), else they are the file
    itself; names of older files become today's. ValueError where there are none.
    """
    found = [state[key] for key in keys if isinstance(state, Mapping) and key in state]
    weights = found[0] if found else state
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"checkpoint {source} holds no weights (looked for {keys[-1]})")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"checkpoint {source} holds no weights: {name!r} is no tensor")
    kept = {name: value for name, value in weights.items() if not name.endswith(_RECOMPUTED)}
    for older, newer in _OLDER_NAMES.items():
        kept = {name.replace(older, newer): value for name, value in kept.items()}
    return kept
