"""Read a checkpoint from anybody: tensors and plain values come out, no code runs."""

import collections
import contextlib
import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]

# Buffers that models compute themselves; files may hold them.
_RECOMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
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
    """Stands for a pickled yacs.config.CfgNode; its attributes are kept and not used."""


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A view of a storage, refused where it reaches beyond it or repeats it into a large tensor."""
    if math.prod(size) > len(storage):
        raise ValueError("it holds a tensor that is out of bounds of its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


# All that a pickle may name, and what stands for it here. Nothing else is ever imported.
_DATA: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("yacs.config", "CfgNode"): _ConfigNode,
} | {("torch", name): dtype for name, dtype in _STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    """Reads the pickle of a torch.save archive, whose storages are files beside it."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for `module.name`; UnpicklingError where that is not data."""
        if (module, name) not in _DATA:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not plain data")
        return _DATA[module, name]

    def persistent_load(self, identity: Any) -> Tensor:
        """The storage ("storage", dtype, file, location, length), as a flat tensor."""
        _, dtype, key, _, length = identity
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0).to(dtype)
            self.storages[key] = flat
        return self.storages[key][:length]


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
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path.stat().st_size)


def _read_old_format(path: Path) -> Any:
    """The format before torch 1.6, if the file is a checkpoint at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's advice is to allow everything
        raise ValueError(
            "it is neither an archive of torch.save nor an old file of tensors and plain values"
        ) from None


def _read_archive(archive: zipfile.ZipFile, file_size: int) -> Any:
    if sum(entry.file_size for entry in archive.infolist()) > file_size:
        raise ValueError("its parts claim to be larger than the file")
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one that torch.save wrote")
    return _Unpickler(archive, pickles[0].removesuffix("data.pkl")).load()


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Every failure inside as a ValueError of one line: broken bytes can raise anything."""
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
    itself. ValueError where there are none.
    """
    found = [state[key] for key in keys if isinstance(state, Mapping) and key in state]
    weights = found[0] if found else state
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"checkpoint {source} holds no weights (looked for {keys[-1]})")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"checkpoint {source} holds no weights: {name!r} is no tensor")
    return {name: value for name, value in weights.items() if not name.endswith(_RECOMPUTED)}
