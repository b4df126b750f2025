"""Read untrusted checkpoints: return tensors and plain values, run no code.

torch reads the file (`weights_only=True`); every record of the archive is checked before, and the
result after. docs/robustness.md lists the costs that a hostile file can still cause.
"""

import contextlib
import errno
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.checkpoints.kinds import HEAD, ZIP, require_checkpoint
from utils.checkpoints.names import an_example
from utils.checkpoints.stand_ins import STAND_INS, Section
from utils.files import DamagedError
from utils.messages import reason_of, short, shown

Weights = dict[str, Tensor]
Content = dict[str, Any]  # of a training checkpoint, by its keys

_BLOCK = 2**22  # bytes
_MOST_ITEMS = 10**7  # values in a file; a value with two references counts twice
_MOST_LEVELS = 100  # of nested sections
_MOST_SHARED = 8  # bytes of all tensors per byte of the file; tensors can share storage

# Buffers that models recompute; files may hold them.
_RECOMPUTED = ("relative_position_index", "attn_mask")


# torch warns so about files that then fail to load with a clearer error.
warnings.filterwarnings("ignore", "Detected pickle protocol")

# Errors of torch's archive reader in files that Python's zipfile accepts.
_BROKEN_ARCHIVE = re.compile(
    "zip archive: (?:invalid header|unsupported|too many files|not a ZIP archive)"
    "|unexpected EOF, expected"  # a file of the format before torch 1.6
)
_FOLDER = 0x10  # an attribute of a zip archive's entry
_PLAIN = str | bytes | bytearray | bool | int | float | complex | torch.dtype | torch.device


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of torch.save in its old or new format, or a .safetensors file, on the CPU.

    Return tensors and plain values; a pickled configuration becomes a dict, an unneeded object
    None. DamagedError where the file is proven damaged; ValueError where it is missing, cannot be
    read, is no checkpoint, or holds anything else.
    """
    path = Path(path)
    with _one_line_errors(path):
        _require_file(path)
        if path.suffix == ".safetensors":
            with open(path, "rb") as file:
                require_checkpoint(file.read(HEAD), safetensors=True)
            return load_file(path)
        size = _verify(path)
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return _Plain(_MOST_SHARED * size).of(content)


def verify_checkpoint(path: Path) -> None:
    """Compare the checksums in a file of torch.save; errors as those of `read_checkpoint`."""
    with _one_line_errors(path):
        _require_file(path)
        _verify(path)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn every exception inside into a one-line ValueError: a file can raise anything."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"checkpoint {path} is damaged, or no checkpoint: {error}") from None
    except FileNotFoundError:
        raise ValueError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {reason_of(error)}") from None
    except MemoryError:
        raise ValueError(f"checkpoint {path} cannot be read: no memory is left for it") from None
    except Exception as error:
        kind = DamagedError if _BROKEN_ARCHIVE.search(str(error)) else ValueError
        raise kind(f"checkpoint {path} cannot be read: {_reason(error)}") from None


def _require_file(path: Path) -> None:
    """ValueError unless `path` is a regular file; OSError where there is none."""
    if path.is_dir() and (path / ".metadata").exists():
        raise ValueError(
            "it is a sharded one: make one file of its weights first "
            f"(python -m tools.export --consolidate {path})"
        )
    if path.is_dir():
        raise ValueError(f"it is a folder: {an_example(path)}")
    path.stat()  # an error of the file system says what is wrong
    if not path.is_file():
        raise ValueError("it is no file")


def _verify(path: Path) -> int:
    """Check a file before torch.load reads it; return its size in bytes.

    DamagedError where it is damaged (files of the format before torch 1.6 have no checksums),
    ValueError where it is a known other kind of file.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
        size = file.seek(0, 2)
        file.seek(-min(size, 2**17), 2)
        file.read()  # the archive's directory: zipfile would report a failing disk as damage
        require_checkpoint(head, safetensors=False)
        if head.startswith(ZIP):
            _verify_archive(file, size)
    return size


def _verify_archive(file: IO[bytes], size: int) -> None:
    """DamagedError unless all records are uncompressed, within the file, and undamaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            # Several parts, since a damaged name is no sign of another program.
            _require_torch_save(names, ("/data.pkl", "/version", "/byteorder"))
            if sum(entry.file_size for entry in entries) > size:
                raise DamagedError("its records claim to be larger than the file")
            for entry in entries:
                # torch reads no record marked as a folder, and returns uninitialized memory.
                marked = entry.is_dir() or entry.external_attr & _FOLDER
                if marked or entry.compress_type != zipfile.ZIP_STORED:
                    raise DamagedError(f"its record {entry.filename[:80]} is not stored as it is")
                # Opening compares the two headers; a checksum of 0 means that none was computed.
                with archive.open(entry) as record:
                    while entry.CRC and record.read(_BLOCK):
                        pass
    except (DamagedError, MemoryError, _OtherArchiveError):
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # seek to a negative position
            raise
        raise DamagedError("its directory contains a negative offset") from None
    except Exception as error:  # zipfile raises many kinds
        cut = "not a zip file" in str(error)  # although it begins as one
        raise DamagedError("its end is missing" if cut else _reason(error)) from None
    _require_torch_save(names, ("/data.pkl",))


class _OtherArchiveError(ValueError):
    """A zip archive is not one of torch.save."""


def _require_torch_save(names: Sequence[str], parts: tuple[str, ...]) -> None:
    """`_OtherArchiveError` for a zip archive that has none of the parts, or is a program."""
    if any(name.endswith("/constants.pkl") for name in names):
        raise _OtherArchiveError(
            "it is a program (torch.jit.save): save its weights "
            "(torch.save(torch.jit.load(FILE).state_dict(), NEW))"
        )
    if not any(name.endswith(parts) for name in names):
        held = f" (it holds {short(names[0])})" if names else ""
        raise _OtherArchiveError(f"it is a zip archive, but not one that torch.save wrote{held}")


def _reason(error: BaseException) -> str:
    """One line for an error of torch or zipfile."""
    text = " ".join(str(error).split())
    if name := re.search(r"GLOBAL (\S+) w(?:as|hose)", text):
        return (
            f"it holds {name[1][:80]}, which is not plain data: save the weights alone "
            "(torch.save(model.state_dict(), FILE))"
        )
    if "Unsupported operand 149" in text:
        return (
            "it was pickled with protocol 4 or 5; torch.save writes 2 unless it is told otherwise"
        )
    if "Invalid magic number" in text:
        return "it is a pickle, but not one that torch.save wrote"
    # torch surrounds its reader's message with advice to read the file unprotected.
    inner = text.partition("WeightsUnpickler error: ")[2].partition(" Check the doc")[0]
    return reason_of(ValueError(inner)) if inner else reason_of(error)


_Sections = dict[Any, object] | list[object] | tuple[object, ...] | set[object]


class _Plain:
    """Converts the result of torch.load to plain values, within limits.

    `most_bytes` limits all tensors together; a tensor with two references counts twice.
    """

    def __init__(self, most_bytes: int) -> None:
        self.left, self.bytes_left = _MOST_ITEMS, most_bytes
        self.known: dict[int, tuple[Any, int, int]] = {}  # result, its values and bytes

    def of(self, value: object, level: int = 0) -> Any:
        """The plain value; ValueError where it is too large, too deep, or an unusual tensor."""
        if isinstance(value, Section):
            value = value.values
        self._count(1, 0)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if not isinstance(value, dict | list | tuple | set):
            return value if isinstance(value, _PLAIN) else None
        if id(value) in self.known:
            plain, values, size = self.known[id(value)]
            self._count(values, size)
            return plain
        if level > _MOST_LEVELS:
            raise ValueError(f"its sections are nested more than {_MOST_LEVELS} deep")
        before = self.left, self.bytes_left
        plain = self._section(value, level + 1)
        self.known[id(value)] = plain, before[0] - self.left, before[1] - self.bytes_left
        return plain

    def _section(self, value: _Sections, level: int) -> Any:
        if isinstance(value, dict):
            for key in value:
                _require_name(key)
            return {key: self.of(item, level) for key, item in value.items()}
        if isinstance(value, set):
            for item in value:
                _require_name(item)
            return set(value)
        items = [self.of(item, level) for item in value]
        return tuple(items) if isinstance(value, tuple) else items

    def _tensor(self, value: Tensor) -> Tensor:
        ordinary = value.layout is torch.strided and value.device.type == "cpu"
        if not ordinary or value.is_quantized or value.is_nested:
            raise ValueError("it holds a tensor that is sparse, quantized, or without numbers")
        if value.nbytes > value.untyped_storage().nbytes():
            raise ValueError("it holds a tensor that repeats its numbers")
        self._count(0, value.nbytes)
        return value.detach()

    def _count(self, values: int, size: int) -> None:
        self.left -= values
        self.bytes_left -= size
        if self.left < 0 or self.bytes_left < 0:
            raise ValueError("it names the same data again and again")


def _require_name(key: object) -> None:
    """ValueError unless `key` is text, a number or None."""
    if not isinstance(key, str | int | float | None):
        raise ValueError(f"it has a {type(key).__name__} as a name")


def model_weights(
    content: object, source: str | Path, keys: Sequence[str] = ("model_ema", "model")
) -> Weights:
    """The weights in the result of `read_checkpoint`, without buffers that models recompute.

    They are the section of the first of `keys` that exists (averaged weights win), else the whole
    content. ValueError where there are none.
    """
    found = [content.get(key) for key in keys] if isinstance(content, Mapping) else []
    weights = next((section for section in found if section is not None), content)
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"checkpoint {source} holds no weights (looked for {keys[-1]})")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"checkpoint {source} holds no weights: {shown(name)} is no tensor")
    return without_recomputed(weights)


def without_recomputed(weights: Mapping[str, Tensor]) -> Weights:
    """The weights without buffers that models recompute."""
    return {name: value for name, value in weights.items() if not name.endswith(_RECOMPUTED)}


def require_same_numbers(weights: Weights, own: Mapping[str, Tensor], source: str | Path) -> None:
    """ValueError where only one of a weight and the model's tensor is floating-point."""
    for name, value in weights.items():
        if value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(
                f"checkpoint {source} does not fit the model: {short(name)} is of {value.dtype}, "
                f"the model's of {own[name].dtype}"
            )


def require_finite(weights: Weights, source: str | Path) -> None:
    """ValueError where a weight is infinite or NaN, since results would be useless."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"checkpoint {source} holds numbers that are not finite ({short(name)}): it is of "
                "a run that diverged, or not what was saved"
            )
