"""From files to pictures: RGB, or any number of channels as numbers."""

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
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Without those for which PIL starts other programs (PostScript) or which nobody stores pictures in.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF")
RGB = 3
NO_LABEL = -1
LARGEST_FILE = 2**31  # bytes
_PAUSES = (0.5, 1.0, 2.0)  # seconds, before a file is tried again
_NPY_HEADERS: dict[Any, Callable[[io.BytesIO], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")

# RGB, also as uint8 (3, H, W); or float32 (C, H, W): integers of 8 and 16 bits as 0 to 1, other
# numbers as they are.
Picture = Image.Image | Tensor


Image.init()  # PIL knows a format by name only when its plugin is loaded


def read_picture(path: str, channels: int = RGB) -> Picture:
    """Read a file as `channels` channels; ValueError names one where that is impossible."""
    return decode_picture(read_file(path), path, channels)


def decoder_of(decoder: str, channels: int) -> Callable[[bytes, str], Picture]:
    """What turns a file's content and name into a picture, by DATA.DECODER: fast or pil."""
    if decoder == "fast" and channels == RGB:
        return decode_jpeg
    return functools.partial(decode_picture, channels=channels)


def decode_picture(content: bytes, name: str, channels: int = RGB) -> Picture:
    """A file's content as `channels` channels; ValueError with its name where that fails."""
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
    except Exception as error:  # broken bytes can raise anything
        reason = reason_of(error)
    raise ValueError(f"{name} cannot be read as a picture: {reason}")


class VanishedError(ValueError):
    """A folder of pictures is no longer there."""


def read_file(path: str) -> bytes:
    """The content of a picture's file; ValueError names one that cannot be read."""

    def read() -> bytes:
        """One attempt."""
        # Without waiting: a named pipe in the folder must not stop a run.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_FILE:
                return file.read()
        raise ValueError(f"{path} cannot be read as a picture: it is no file of at most 2 GiB")

    return read_patiently(read, path, os.path.dirname(path))


def read_patiently(read: Callable[[], bytes], name: str, folder: str) -> bytes:
    """What `read` returns, tried again where the storage fails.

    ValueError with `name` where it keeps failing; VanishedError where `folder` is gone.
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
    """Whether a file that is open, and not yet decoded, stores colours of 16 bits."""
    layouts = [entry[3] for entry in image.tile]  # "RGBA;16B", or a tuple that begins so
    return any(
        "16" in str(layout[0] if isinstance(layout, tuple) else layout) for layout in layouts
    )


def decode_jpeg(content: bytes, name: str) -> Picture:
    """A JPEG file's content as uint8 RGB (3, H, W), the pixels of PIL in less time.

    Other files as PIL reads them; ValueError names one that is no picture.
    """
    if not name.lower().endswith((".jpg", ".jpeg")):
        return decode_picture(content, name)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in _JPEG_COLOURS or height * width > 2 * (Image.MAX_IMAGE_PIXELS or 0):
            return decode_picture(content, name)
        pixels = simplejpeg.decode_jpeg(content)
    except ValueError:
        return decode_picture(content, name)  # which tells what is wrong, or is more patient
    return torch.from_numpy(pixels).permute(2, 0, 1)


def as_channels(image: Image.Image, channels: int) -> Picture:
    """A picture as RGB, or as floats with another number of channels.

    One channel is grey; ValueError where the picture has not the wanted number of others.
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
    """A file of NumPy's format: (H, W), (H, W, C) or (C, H, W)."""
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
    """What numpy.save wrote; memory is claimed for what is there, not for what the header says."""
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
    """(C, H, W) of any numbers as float32."""
    if len(pixels) != channels:
        raise ValueError(
            f"it has {len(pixels)} channel(s), the encoder takes {channels} (IN_CHANS)"
        )
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"it holds {pixels.dtype}, expected numbers")
    largest = {np.dtype("uint8"): 255, np.dtype("uint16"): 65535}.get(pixels.dtype, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(largest))


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB: 16-bit grey is scaled, transparent parts become white."""
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
