"""Read files and decode them: RGB pictures, or float tensors with any number of channels."""

import contextlib
import contextvars
import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data import tiff
from data.numbers import (
    as_bytes,
    as_floats,
    decode_array,
    largest_of,
    require_channels,
)
from data.tiff import RGB, Planes, read_tiff, require_pixels
from utils.files import read_regular
from utils.messages import one_line, reason_of, shown

ARRAY_SUFFIX = ".npy"
IMAGE_SUFFIXES = (
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Without formats for which PIL starts other programs (PostScript), and without rare ones.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF")
NO_LABEL = -1
LARGEST_FILE = 2**31  # bytes
MOST_PIXELS = 178_956_970  # PIL's limit
_PAUSES = (0.5, 1.0, 2.0)  # seconds before a file is read again
# Errors that tell of one file, where its folder can be listed, and not of a failing storage.
_OF_ONE_FILE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM),
)
_pauses: contextvars.ContextVar[tuple[float, ...]] = contextvars.ContextVar(
    "pauses", default=_PAUSES
)
_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")
_JPEG = b"\xff\xd8\xff"  # the first bytes
_PROGRESSIVE, _SCAN = b"\xff\xc2", b"\xff\xda"  # markers of a frame and of each scan
_MOST_SCANS = 500  # of a progressive JPEG, which takes the time of as many pictures
ORIENTATION = 0x0112  # of EXIF
_GREYS_OF_FEW_BITS = {"L;2": 85, "L;4": 17}  # layout -> 255 / the largest number
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


@dataclass(frozen=True)
class Reduced:
    """An RGB picture of height x width pixels, decoded for a small crop: one for each square.

    The squares have `divisor` pixels a side; the last ones may reach beyond the picture.
    """

    pixels: Image.Image
    height: int
    width: int
    divisor: int


# An RGB image of PIL; uint8 RGB (3, H, W); or float32 (C, H, W) (`numbers.as_floats`).
Picture = Image.Image | Tensor | Reduced


Image.init()  # PIL finds formats by name only after their plugins are loaded
Image.MAX_IMAGE_PIXELS = None  # `require_pixels` has the limit


@dataclass(frozen=True)
class Decoder:
    """Decodes a file's content as `channels` channels: 3 are RGB, 1 is grey, others are planes.

    `fast` decodes JPEG with simplejpeg, to PIL's pixels in less time. `oriented` turns pictures as
    EXIF says. `most_pixels` is the largest size. `reduction` (height, width) -> 1, 2, 4 or 8 is the
    divisor of sides that a crop leaves enough pixels; where it is not 1, `fast` decodes `Reduced`.
    """

    channels: int = RGB
    fast: bool = False
    oriented: bool = False
    most_pixels: int = MOST_PIXELS
    reduction: Callable[[int, int], int] | None = None

    def __call__(self, content: bytes, name: str) -> Picture:
        """Decode; ValueError with the file's `name` where that fails."""
        try:
            if name.lower().endswith(ARRAY_SUFFIX):
                return decode_array(content, self.channels)
            if content.startswith(tiff.MAGIC):
                planes = read_tiff(content, self.channels, self.most_pixels)
                if planes is not None:
                    return self._of_planes(planes)
            if content.startswith(_JPEG):
                _require_few_scans(content)
                picture = self._fast_jpeg(content)
                if picture is not None:
                    return picture
            return self._by_pil(content)
        except UnidentifiedImageError:
            reason = _of_no_format(content)
        except Exception as error:  # broken content raises exceptions of many types
            reason = reason_of(error)
        raise ValueError(f"{name} cannot be read as a picture: {reason}")

    def _by_pil(self, content: bytes) -> Picture:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            require_pixels(image.width, image.height, self.most_pixels)
            if self.channels not in (1, RGB):
                # PIL opens grey with alpha of 16 bits as RGB with alpha.
                planes = 2 if "LA;16B" in _layouts(image) else len(image.getbands())
                require_channels(planes, self.channels)
                if has_16_bits(image):
                    raise ValueError(
                        "its colours have 16 bits, of which PIL keeps 8: save it as .npy"
                    )
            _scale_transparent(image)
            image.load()
            if self.oriented:
                ImageOps.exif_transpose(image, in_place=True)
            return as_channels(image, self.channels)

    def _fast_jpeg(self, content: bytes) -> Tensor | Reduced | None:
        """Decode a JPEG file to uint8 RGB (3, H, W); None for what only PIL decodes, or reports."""
        if not self.fast or self.channels != RGB or (self.oriented and _is_turned(content)):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            if colours not in _JPEG_COLOURS or height * width > self.most_pixels:
                return None
            divisor = 1 if self.reduction is None else self.reduction(height, width)
            if divisor > 1:  # libjpeg leaves out the finest frequencies
                least = {"min_height": -(-height // divisor), "min_width": -(-width // divisor)}
                pixels = simplejpeg.decode_jpeg(content, **least)
                return Reduced(Image.fromarray(pixels), height, width, divisor)
            return torch.from_numpy(simplejpeg.decode_jpeg(content)).permute(2, 0, 1)
        except ValueError:
            return None

    def _of_planes(self, planes: Planes) -> Picture:
        """Convert numbers to RGB or grey where they have a range, else to floats."""
        numbers, bits = planes.numbers, planes.bits
        if len(numbers) == self.channels and (
            self.channels != RGB or largest_of(numbers.dtype) is None
        ):
            return as_floats(numbers, bits)
        pixels = as_bytes(numbers, bits).transpose(1, 2, 0)  # (H, W, C)
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        return as_channels(Image.fromarray(np.ascontiguousarray(pixels)), self.channels)


def _of_no_format(content: bytes) -> str:
    """Why PIL knows no format of a file."""
    if content.startswith(tiff.MAGIC):
        return f"it is {tiff.describe_content(content)}, which is not read: save it as .npy"
    begins = shown(content[:16])  # of a web page, a Git LFS pointer, a format by its name
    return f"it is in no known format (it begins {begins})" if content else "it is empty"


EXACT_RGB = Decoder()
FAST_RGB = Decoder(fast=True)


def read_picture(path: str, channels: int = RGB) -> Picture:
    """Read a file as `channels` channels; ValueError names a file where that fails."""
    return Decoder(channels)(read_file(path), path)


def _require_few_scans(content: bytes) -> None:
    """ValueError for a progressive JPEG of endless scans."""
    if _PROGRESSIVE in content[: content.find(_SCAN)] and content.count(_SCAN) > _MOST_SCANS:
        raise ValueError(f"it is a JPEG of more than {_MOST_SCANS} scans")


def _is_turned(content: bytes) -> bool:
    """Whether EXIF says that a picture stands otherwise than its rows."""
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return image.getexif().get(ORIENTATION, 1) != 1


class VanishedError(ValueError):
    """A folder of pictures no longer exists."""


@contextlib.contextmanager
def without_pauses(active: bool = True) -> Iterator[None]:
    """Make one attempt only at every file in the block, if `active`: for files known to fail."""
    token = _pauses.set(() if active else _pauses.get())
    try:
        yield
    finally:
        _pauses.reset(token)


def read_file(path: str) -> bytes:
    """Read a picture's file; ValueError names a file that cannot be read."""

    def read() -> bytes:
        """One attempt."""
        try:
            return read_regular(path, LARGEST_FILE)
        except ValueError as error:
            raise ValueError(f"{one_line(path)} cannot be read as a picture: {error}") from None

    return read_patiently(read, one_line(path), os.path.dirname(path))


def read_patiently(read: Callable[[], bytes], name: str, folder: str) -> bytes:
    """Return `read()`; call it again after an error of the storage (OSError).

    An error of one file in a folder that can be listed, such as a missing file, is none of the
    storage. ValueError with `name` where all attempts fail; VanishedError where `folder` is gone.
    """
    pauses, looked_again = _pauses.get(), False
    for pause in (*pauses, None):
        try:
            return read()
        except OSError as error:
            reason = error.strerror
            of_one_file = error.errno in _OF_ONE_FILE and _can_be_listed(folder)
        if of_one_file and looked_again:
            break
        # Listing a folder renews what a network file system remembered of the names in it: an
        # answer out of date is another one at once, without a pause.
        looked_again = of_one_file
        if pause is not None and not of_one_file:
            time.sleep(pause)
    if pauses and not os.path.isdir(folder or "."):
        raise VanishedError(
            f"{folder} has vanished while its pictures were read ({len(_PAUSES) + 1} attempts in "
            f"{sum(_PAUSES):g} s): {name}: {reason}"
        )
    raise ValueError(f"{name} cannot be read as a picture: {reason}")


def _can_be_listed(folder: str) -> bool:
    try:
        with os.scandir(folder or ".") as entries:
            next(entries, None)
    except OSError:
        return False
    return True


def _layouts(image: Image.Image) -> list[str]:
    """How a file that is open but not yet decoded stores numbers, for example "RGBA;16B"."""
    layouts = [entry[3] for entry in getattr(image, "tile", ())]
    return [str(layout[0] if isinstance(layout, tuple) else layout) for layout in layouts]


def has_16_bits(image: Image.Image) -> bool:
    """Whether a file that is open but not yet decoded stores 16-bit colours."""
    # BMP's "BGR;16" are three colours in 16 bits.
    return any("16" in layout and not layout.startswith("BGR") for layout in _layouts(image))


def _scale_transparent(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG file to 8 bits, as PIL does the pixels only."""
    value, layouts = image.info.get("transparency"), _layouts(image)
    if isinstance(value, int) and layouts and layouts[0] in _GREYS_OF_FEW_BITS:
        image.info["transparency"] = value * _GREYS_OF_FEW_BITS[layouts[0]]
    elif isinstance(value, tuple) and has_16_bits(image):
        image.info["transparency"] = tuple(number >> 8 for number in value)


def as_channels(image: Image.Image, channels: int) -> Picture:
    """Convert a picture to RGB, or to float32 (C, H, W) for another number of channels.

    One channel is grey. For others, ValueError where the picture has a different number.
    """
    if channels == RGB:
        return to_rgb(image)
    if channels == 1 and image.mode.startswith("I"):
        return as_floats(_grey_of_16_bits(image)[None])
    if channels == 1 and image.mode != "F":
        image = to_rgb(image).convert("L")
    pixels = np.asarray(image)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    require_channels(len(planes), channels)
    return as_floats(planes)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture to 8-bit RGB: keep 8 of 16 bits, blend transparency with white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(as_bytes(_grey_of_16_bits(image)))
    elif image.mode == "F":
        image = Image.fromarray(as_bytes(np.asarray(image)))  # an error that names the way
    elif image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image  # PIL knows no other way
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_of_16_bits(image: Image.Image) -> np.ndarray:
    """The uint16 numbers (H, W) of a grey picture, white where it is transparent."""
    pixels = np.asarray(image)
    if pixels.dtype.itemsize > 2 and (pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError("its numbers exceed 16 bits: save it as .npy")
    pixels = pixels.astype(np.uint16)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels = np.where(pixels == transparent, np.uint16(65535), pixels)
    return pixels
