"""Decode files to pictures: RGB, or float tensors with any number of channels."""

import functools
import io
import math
import os
import stat
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.lib import format as npy
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from utils.messages import reason_of

ARRAY_SUFFIX = ".npy"
_JPEG_SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif")
IMAGE_SUFFIXES = (
    *_JPEG_SUFFIXES,
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Without formats for which PIL starts other programs (PostScript), and without rare ones.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF")
RGB = 3
NO_LABEL = -1
LARGEST_FILE = 2**31  # bytes
_PAUSES = (0.5, 1.0, 2.0)  # seconds before a file is read again
_NPY_HEADERS: dict[Any, Callable[[io.BytesIO], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")

# An RGB image of PIL; uint8 RGB (3, H, W); or float32 (C, H, W): unsigned integers of 8 and 16 bits
# scaled to 0 to 1, other numbers unchanged.
Picture = Image.Image | Tensor


Image.init()  # PIL finds formats by name only after their plugins are loaded


def read_picture(path: str, channels: int = RGB) -> Picture:
    """Read a file as `channels` channels; ValueError names a file where that fails."""
    return decode_picture(read_file(path), path, channels)


def decoder_of(decoder: str, channels: int) -> Callable[[bytes, str], Picture]:
    """Return the function (content, name) -> picture for DATA.DECODER: fast or pil."""
    if decoder == "fast" and channels == RGB:
        return decode_jpeg
    return functools.partial(decode_picture, channels=channels)


def decode_picture(content: bytes, name: str, channels: int = RGB) -> Picture:
    """Decode a file's content as `channels` channels; ValueError with its name where that fails."""
    try:
        if name.lower().endswith(ARRAY_SUFFIX):
            return _decode_array(content, channels)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if channels not in (1, RGB) and _has_16_bits(image):
                raise ValueError("its colours have 16 bits, of which PIL keeps 8: save it as .npy")
            image.load()
            return as_channels(image, channels)
    except UnidentifiedImageError:
        reason = "it is empty" if not content else "it is in no known format"
    except Exception as error:  # broken content raises exceptions of many types
        reason = reason_of(error)
    raise ValueError(f"{name} cannot be read as a picture: {reason}")


class VanishedError(ValueError):
    """A folder of pictures no longer exists."""


def read_file(path: str) -> bytes:
    """Read a picture's file; ValueError names a file that cannot be read."""

    def read() -> bytes:
        """One attempt."""
        # O_NONBLOCK: opening a named pipe must not block the run.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_FILE:
                return file.read()
        raise ValueError(f"{path} cannot be read as a picture: it is no file of at most 2 GiB")

    return read_patiently(read, path, os.path.dirname(path))


def read_patiently(read: Callable[[], bytes], name: str, folder: str) -> bytes:
    """Return `read()`; call it again after an error of the storage (OSError).

    ValueError with `name` where all attempts fail; VanishedError where `folder` is gone.
    """
    for pause in (*_PAUSES, None):
        try:
            return read()
        except OSError as error:
            reason = error.strerror
        if pause is not None:
            time.sleep(pause)
    if not os.path.isdir(folder):
        raise VanishedError(
            f"{folder} has vanished while its pictures were read ({len(_PAUSES) + 1} attempts in "
            f"{sum(_PAUSES):g} s): {name}: {reason}"
        )
    raise ValueError(f"{name} cannot be read as a picture: {reason}")


def _has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Whether a file that is open but not yet decoded stores 16-bit colours."""
    layouts = [entry[3] for entry in image.tile]  # "RGBA;16B", or a tuple that begins with it
    return any(
        "16" in str(layout[0] if isinstance(layout, tuple) else layout) for layout in layouts
    )


def decode_jpeg(content: bytes, name: str) -> Picture:
    """Decode a JPEG file to uint8 RGB (3, H, W): PIL's pixels in less time.

    PIL decodes other files, other colour spaces and huge pictures. ValueError names a broken file.
    """
    if not name.lower().endswith(_JPEG_SUFFIXES):
        return decode_picture(content, name)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in _JPEG_COLOURS or height * width > 2 * (Image.MAX_IMAGE_PIXELS or 0):
            return decode_picture(content, name)
        pixels = simplejpeg.decode_jpeg(content)
    except ValueError:
        return decode_picture(content, name)  # PIL reports the error, or tolerates it
    return torch.from_numpy(pixels).permute(2, 0, 1)


def as_channels(image: Image.Image, channels: int) -> Picture:
    """Convert a picture to RGB, or to float32 (C, H, W) for another number of channels.

    One channel is grey. For others, ValueError where the picture has a different number.
    """
    if channels == RGB:
        return to_rgb(image)
    if channels == 1 and not image.mode.startswith(("I", "F")):
        image = to_rgb(image).convert("L")
    pixels = np.asarray(image)
    if image.mode.startswith("I"):
        pixels = pixels.astype(np.uint16)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return _as_floats(pixels.transpose(2, 0, 1), channels)


def _decode_array(content: bytes, channels: int) -> Tensor:
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
    return _as_floats(pixels, channels)


def _array_of(content: bytes) -> np.ndarray:
    """Decode numpy.save's format; allocate nothing for a size that only the header claims."""
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    if version not in _NPY_HEADERS:
        raise ValueError(f"version {version} of NumPy's format, expected 1.0 or 2.0")
    shape, by_columns, dtype = _NPY_HEADERS[version](file)
    number, start = math.prod(shape), file.tell()
    if not 0 <= number * dtype.itemsize <= len(content) - start:
        raise ValueError(f"its header tells of {shape} {dtype}, but the file ends before that")
    pixels = np.frombuffer(content, dtype, number, start)
    return pixels.reshape(shape, order="F" if by_columns else "C")


def _as_floats(pixels: np.ndarray, channels: int) -> Tensor:
    """Convert real numbers (C, H, W) to float32; scale uint8 and uint16 to 0 to 1."""
    if len(pixels) != channels:
        raise ValueError(
            f"it has {len(pixels)} channel(s), the encoder takes {channels} (IN_CHANS)"
        )
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"it holds {pixels.dtype}, expected numbers")
    largest = {np.dtype("uint8"): 255, np.dtype("uint16"): 65535}.get(pixels.dtype, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(largest))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture to 8-bit RGB: scale 16-bit grey, blend transparency with white."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("its numbers are real, with no range that says what 8-bit RGB they make")
    if image.mode.startswith("I"):  # PIL's conversion would clip 16 bits at 255
        image = image.convert("I").point(lambda value: value * (1 / 256), "L")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
