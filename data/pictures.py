"""From files to pictures: RGB, or any number of channels as numbers."""

import os
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

ARRAY_SUFFIX = ".npy"
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
RGB = 3
_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")

# RGB, also as uint8 (3, H, W); or float32 (C, H, W): integers of 8 and 16 bits as 0 to 1, other
# numbers as they are.
Picture = Image.Image | Tensor


def read_picture(path: str, channels: int = RGB) -> Picture:
    """Read a file as `channels` channels; ValueError names one where that is impossible."""
    try:
        if path.lower().endswith(ARRAY_SUFFIX):
            return _read_array(path, channels)
        with open(path, "rb") as file, Image.open(file) as image:
            if channels not in (1, RGB) and _has_16_bits(image):
                raise ValueError("its colours have 16 bits, of which PIL keeps 8: save it as .npy")
            image.load()  # here, where the file is open and an error names it
            return as_channels(image, channels)
    except (
        *(UnidentifiedImageError, Image.DecompressionBombError),
        *(OSError, SyntaxError, ValueError),
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as a picture: {reason}") from None


def _has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Whether a file that is open, and not yet decoded, stores colours of 16 bits."""
    layouts = [entry[3] for entry in image.tile]  # "RGBA;16B", or a tuple that begins so
    return any(
        "16" in str(layout[0] if isinstance(layout, tuple) else layout) for layout in layouts
    )


def read_jpeg(path: str) -> Picture:
    """A JPEG file as uint8 RGB (3, H, W), the pixels of PIL in less time; other files as PIL does.

    ValueError names a file that is no picture.
    """
    if not path.lower().endswith((".jpg", ".jpeg")):
        return read_picture(path)
    try:
        content = Path(path).read_bytes()
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in _JPEG_COLOURS or height * width > 2 * (Image.MAX_IMAGE_PIXELS or 0):
            return read_picture(path)
        pixels = simplejpeg.decode_jpeg(content)
    except (OSError, ValueError):
        return read_picture(path)  # which names what is wrong, or is more patient
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


def _read_array(path: str, channels: int) -> Tensor:
    """A file of NumPy's format: (H, W), (H, W, C) or (C, H, W)."""
    pixels = np.load(path, mmap_mode="r", allow_pickle=False)
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
    """Any picture as 8-bit RGB: 16-bit grey is scaled, transparent parts become white."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # PIL's conversion would clip 16 bits at 255
        image = image.convert("I").point(lambda value: value * (1 / 256), "L")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def require_path(root: str) -> None:
    """ValueError where no data path is given."""
    if not root:
        raise ValueError("DATA.DATA_PATH is empty, expected a folder of images (--data-path DIR)")


def find_pictures(root: str) -> list[bytes]:
    """Paths of all pictures at any depth below `root`, relative to it, in no order.

    ValueError where pictures and arrays, whose numbers have other ranges, are mixed.
    """
    require_path(root)
    if not Path(root).is_dir():
        raise ValueError(f"DATA.DATA_PATH {root} is not a folder, expected one that holds images")
    names = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        names += [
            os.fsencode(os.path.normpath(os.path.join(relative, name)))
            for name in files
            if name.lower().endswith((*IMAGE_SUFFIXES, ARRAY_SUFFIX))
        ]
    num_arrays = sum(name.lower().endswith(ARRAY_SUFFIX.encode()) for name in names)
    if num_arrays not in (0, len(names)):
        raise ValueError(f"{root} mixes {num_arrays} {ARRAY_SUFFIX} array(s) with other pictures")
    return names
