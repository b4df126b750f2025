"""What a number in a file means: the one rule for pictures and arrays of every type."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

_NPY_HEADERS: dict[Any, Callable[[io.BytesIO], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def largest_of(dtype: np.dtype, bits: int | None = None) -> int | None:
    """The number that means 1.0, where 0 means 0.0; None where numbers mean themselves.

    Truth values and unsigned integers of at most 16 bits have such a range. `bits` are those in
    use, where a file says so; otherwise all bits of the type are.
    """
    if dtype.kind == "b":
        return 1
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return 2 ** (bits or 8 * dtype.itemsize) - 1
    return None


def as_floats(planes: np.ndarray, bits: int | None = None) -> Tensor:
    """Convert numbers (C, H, W) of any type and byte order to float32.

    Numbers with a range (`largest_of`) become 0 to 1; signed, longer and real ones stay as they
    are. ValueError where a number is NaN or infinite in float32.
    """
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, found below
        floats = np.array(planes, dtype=np.float32, order="C")
    if planes.dtype.kind == "f" and not (finite := np.isfinite(floats)).all():
        raise ValueError(
            f"{finite.size - np.count_nonzero(finite)} of its {finite.size} numbers are NaN, "
            "infinite or beyond float32: replace them, for example by the data set's mean"
        )
    if (largest := largest_of(planes.dtype, bits)) is not None:
        floats /= np.float32(largest)
    return torch.from_numpy(floats)


def as_bytes(planes: np.ndarray, bits: int | None = None) -> np.ndarray:
    """Convert numbers with a range to uint8: of more than 8 bits the highest 8 remain.

    ValueError for numbers without a range, which do not tell what 8 bits they make.
    """
    largest = largest_of(planes.dtype, bits)
    if largest is None:
        raise ValueError(
            f"its numbers are {planes.dtype.name}, with no range that says what 8-bit RGB they "
            "make: train with IN_CHANS 1, which keeps them (DATA.MEAN, DATA.STD), or scale them"
        )
    if largest < 255:
        return (planes.astype(np.uint16) * 255 // largest).astype(np.uint8)
    return (planes >> (largest.bit_length() - 8)).astype(np.uint8)


def require_channels(found: int, wanted: int, what: str = "") -> None:
    """ValueError where a picture does not have the encoder's number of channels."""
    if found != wanted:
        raise ValueError(
            f"it has {found} channel(s){what}, the encoder takes {wanted} (IN_CHANS of the "
            "encoder's section of MODEL)"
        )


def decode_array(content: bytes, channels: int) -> Tensor:
    """Decode an .npy file of shape (H, W), (H, W, C) or (C, H, W) to float32 (C, H, W)."""
    pixels = _array_of(content)
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and shape[2] == channels:
        pixels = pixels.transpose(2, 0, 1)
    if pixels.ndim != 3 or len(pixels) != channels or 0 in shape:
        raise ValueError(
            f"its shape is {shape}, expected (H, W, C) or (C, H, W) with C = {channels} (IN_CHANS)"
        )
    return as_floats(pixels)


def dtype_of_array(content: bytes) -> str:
    """The name of the type of numbers in an .npy file."""
    _, _, dtype = _read_header(io.BytesIO(content))
    return dtype.name


def _read_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type; ValueError for other than real numbers."""
    version = npy.read_magic(file)
    if version not in _NPY_HEADERS:
        raise ValueError(f"version {version} of NumPy's format, expected 1.0 or 2.0")
    header: tuple[tuple[int, ...], bool, np.dtype] = _NPY_HEADERS[version](file)
    if header[2].kind not in "buif":
        raise ValueError(f"it holds {header[2]}, expected real numbers")
    return header


def _array_of(content: bytes) -> np.ndarray:
    """Decode numpy.save's format; allocate nothing for a size that only the header claims."""
    file = io.BytesIO(content)
    shape, by_columns, dtype = _read_header(file)
    number, start = math.prod(shape), file.tell()
    if not 0 <= number * dtype.itemsize <= len(content) - start:
        raise ValueError(f"its header tells of {shape} {dtype}, but the file ends before that")
    pixels = np.frombuffer(content, dtype, number, start)
    return pixels.reshape(shape, order="F" if by_columns else "C")
