"""What a sample of a data set's files shows before training, for the log's first lines."""

import dataclasses
import io
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import tiff
from data.datasets import LabelledDataset, PretrainDataset
from data.numbers import dtype_of_array, largest_of
from data.pictures import ARRAY_SUFFIX, FORMATS, ORIENTATION, RGB, Decoder, has_16_bits
from data.sources import PictureSet, Selection
from data.tiff import require_pixels
from data.transforms import Normalizer
from utils.messages import shown
from utils.processes.group import rank

_FILES = 64
_NUMBERS = 2**16  # of each file that are measured, in all its channels
_SECONDS = 2.0  # storage may be slow
_FRAMES_APART = ("GIF", "PNG", "WEBP")  # formats of animations; further ones of JPEG are previews
_GREY_16 = ("I", "I;16", "I;16B")
_NARROW = 1 / 8  # of the range: 3 of the 8 bits that RGB keeps are lost
_ODD = 10.0  # times the deviation that is expected of normalized numbers, or a part of it


@dataclass(frozen=True)
class Header:
    """A file's type of number, whether EXIF turns it, and its frames or pages that are not used.

    `stacked`: whether its pages are the channels.
    """

    dtype: str
    turned: bool = False
    unused: int = 0
    stacked: bool = False


@dataclass
class FirstLook:
    """Lines for the log: `notes`, and `warnings` of numbers that training would hardly see."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def describe(
    dataset: PretrainDataset | LabelledDataset,
    log: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Tell how a data set's pictures were found and, in the first process, what a sample shows."""
    log(str(dataset.pictures))
    if rank() == 0:
        look = first_look(dataset.pictures.pictures, dataset.normalize)
        for note in look.notes:
            log(note)
        for warning in look.warnings:
            warn(warning)


def first_look(pictures: PictureSet, normalize: Normalizer | None = None) -> FirstLook:
    """Read a sample of files, spread over the data set, for at most 2 s.

    A set without the method `content` has no files. Unreadable files are left to training, which
    counts them.
    """
    look, indices = FirstLook(), np.linspace(0, len(pictures) - 1, min(_FILES, len(pictures)))
    source, chosen = pictures, indices.astype(int).tolist()
    if isinstance(pictures, Selection):
        source, chosen = pictures.whole, [pictures.indices[index] for index in chosen]
    read, decode = getattr(source, "content", None), getattr(source, "decode", None)
    if read is None or not isinstance(decode, Decoder):
        return look
    end = time.monotonic() + _SECONDS
    headers: list[Header] = []
    images: list[Tensor] = []
    largest: list[float] = []
    for index in chosen:
        if time.monotonic() > end:
            break
        try:
            content, name = read(index), source.name(index)
            header = header_of(content, name, decode)
            picture = decode(content, name) if _is_measured(header, name, decode) else None
        except Exception:  # broken content raises exceptions of many types
            continue
        headers.append(header)
        if isinstance(picture, Tensor) and picture.dtype == torch.float32:
            step = max(1, picture.numel() // _NUMBERS)
            images.append(picture.flatten(1)[:, ::step].clone())  # a view keeps the whole picture
        elif header.dtype == "uint16" and decode.channels == RGB:
            largest.append(_largest(content, name, decode))
    _describe(look, headers, decode)
    _warn_of_narrow(look, largest)
    if normalize is not None:
        _warn_of_odd(look, images, normalize)
    return look


def header_of(content: bytes, name: str, decode: Decoder) -> Header:
    """Read a file's header; exceptions of many types where it is broken."""
    if name.lower().endswith(ARRAY_SUFFIX):
        return Header(dtype_of_array(content))
    if content.startswith(tiff.MAGIC):
        used, unused = tiff.num_pages(content, decode.channels)
        return Header(tiff.dtype_of(content), unused=unused, stacked=used > 1)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        # PIL decodes a PNG file to look for EXIF behind its pixels.
        require_pixels(image.width, image.height, decode.most_pixels)
        frames = getattr(image, "n_frames", 1) if image.format in _FRAMES_APART else 1
        dtype = "uint16" if image.mode in _GREY_16 or has_16_bits(image) else "uint8"
        return Header(dtype, image.getexif().get(ORIENTATION, 1) != 1, frames - 1)


def _is_measured(header: Header, name: str, decode: Decoder) -> bool:
    """Whether a file's numbers tell something: those of 8-bit RGB have one range."""
    return decode.channels != RGB or header.dtype != "uint8" or name.lower().endswith(ARRAY_SUFFIX)


def _largest(content: bytes, name: str, decode: Decoder) -> float:
    """The largest number in a file of 16 bits, as a share of the range."""
    grey = dataclasses.replace(decode, channels=1)(content, name)
    assert isinstance(grey, Tensor)
    return float(grey.max())


def _describe(look: FirstLook, headers: list[Header], decode: Decoder) -> None:
    """Note types of numbers, pictures that EXIF turns, and frames that are not used."""
    if not headers:
        return
    types = Counter(header.dtype for header in headers)
    text = ", ".join(f"{number} of {dtype}" for dtype, number in types.most_common())
    look.notes.append(f"a sample of {len(headers)} files holds numbers of these types: {text}")
    if turned := sum(header.turned for header in headers):
        applied = "is applied" if decode.oriented else "only DATA.EXIF_ORIENTATION True applies"
        look.notes.append(
            f"{turned} of {len(headers)} sampled files carry an EXIF orientation, which {applied}"
        )
    if stacked := sum(header.stacked for header in headers):
        look.notes.append(
            f"{stacked} of {len(headers)} sampled files are TIFF of {decode.channels} pages, which "
            "are read as channels"
        )
    if unused := sum(header.unused > 0 for header in headers):
        look.warnings.append(
            f"{unused} of {len(headers)} sampled files have frames or pages that are not used: the "
            "first one counts (pages of a TIFF are channels where there are as many as IN_CHANS)"
        )
    ranges = {largest_of(np.dtype(dtype)) is not None for dtype in types}
    if len(ranges) > 1:
        look.warnings.append(
            f"the sampled files hold numbers with and without a range ({text}): those with one "
            "become 0 to 1, the others stay as they are; train on each kind by itself"
        )


def _warn_of_narrow(look: FirstLook, largest: list[float]) -> None:
    """Warn where files of 16 bits use so little of the range that 8 bits hardly show it."""
    if largest and max(largest) < _NARROW:
        number = round(max(largest) * 65535)
        look.warnings.append(
            f"the largest number in {len(largest)} sampled files of 16 bits is {number} of "
            f"65535: 8-bit RGB keeps {number // 256 + 1} levels of it; train with IN_CHANS 1, "
            "which keeps all bits of grey files, and the pictures' own DATA.MEAN and DATA.STD; of "
            "colours .npy keeps them"
        )


def _warn_of_odd(look: FirstLook, images: list[Tensor], normalize: Normalizer) -> None:
    """Warn where numbers are far from a deviation of 1 after normalization; tell their own.

    A channel of one number only, such as opaque transparency, has no deviation to be normalized by.
    """
    if not images:
        return
    numbers = torch.cat(images, dim=1).double()  # (C, pixels)
    mean, std = numbers.mean(1), numbers.std(1, correction=0)
    wanted_mean, wanted_std = (values.flatten() for values in (normalize.mean, normalize.std))
    deviation, offset = std / wanted_std, (mean - wanted_mean) / wanted_std
    usual = (deviation > 1 / _ODD) & (deviation < _ODD) & (offset.abs() < _ODD)
    usual |= std == 0
    if not usual.all():
        own = [[float(f"{value:.3g}") for value in values.tolist()] for values in (mean, std)]
        look.warnings.append(
            "DATA.MEAN and DATA.STD do not fit the sampled pictures: normalized, a channel has a "
            f"mean of {offset[~usual][0]:.3g} and a deviation of {deviation[~usual][0]:.3g}, "
            f"expected about 0 and 1; the pictures' own are {shown(own[0])} and {shown(own[1])}"
        )
