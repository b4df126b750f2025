"""TIFF files that PIL reads wrongly or not at all, by tifffile."""

import io
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from data.numbers import largest_of, require_channels

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RGB = 3
_WHITE_IS_0 = PHOTOMETRIC.MINISWHITE
_GREY = (PHOTOMETRIC.MINISBLACK, _WHITE_IS_0)
_PLANES = (*_GREY, PHOTOMETRIC.RGB, PHOTOMETRIC.SEPARATED)  # numbers that need no conversion
_UNSIGNED, _COMPLEX = 1, (5, 6)  # of SampleFormat
_PREMULTIPLIED, _ALPHA = tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA
_BITS_OF_PIL = (1, 2, 4, 8, 16)
_MOST_BESIDE_RGB = 6  # planes in all, of which PIL reads those of RGB
_REDUCED, _MASK = 1, 4  # of NewSubfileType
_ORIENTATION = 274

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong raises


@dataclass(frozen=True)
class Planes:
    """Numbers (C, H, W) of a picture, of which `bits` bits are in use."""

    numbers: np.ndarray
    bits: int


def read_tiff(content: bytes, channels: int, most_pixels: int) -> Planes | None:
    """Read a TIFF file's planes; None where PIL reads it rightly, by its header.

    Full-resolution pages of one plane and one size, as many as `channels`, are the channels;
    otherwise the first full-resolution page counts alone. ValueError names what is not read.
    """
    with TiffFile(io.BytesIO(content)) as file:
        pages = _pages(file, channels)
        page = pages[0]
        # PIL does not know BigTIFF of the other byte order.
        by_pil = page.index == 0 and not (file.is_bigtiff and file.byteorder == ">")
        if len(pages) == 1 and by_pil and _suits_pil(page, channels):
            return None
        planes = len(pages) if len(pages) > 1 else page.samplesperpixel
        if page.dtype is None:
            raise ValueError(f"it is {describe(page)}, which is not read")
        grey_to_rgb = (planes, channels) == (1, RGB)
        rgb_to_grey = (planes, channels) == (RGB, 1) and page.photometric == PHOTOMETRIC.RGB
        if not (grey_to_rgb or (rgb_to_grey and largest_of(page.dtype) is not None)):
            pages_too = f", {len(file.pages)} pages" if len(file.pages) > 1 else ""
            require_channels(planes, channels, f" ({describe(page)}{pages_too})")
        known = page.photometric in _PLANES and page.sampleformat not in _COMPLEX
        if page.photometric == _WHITE_IS_0 and {_PREMULTIPLIED, _ALPHA} & {*page.extrasamples}:
            known = False  # programs differ in which plane is inverted
        if not known or not isinstance(page.bitspersample, int):
            raise ValueError(f"it is {describe(page)}, which is not read: save it as .npy")
        require_pixels(page.imagewidth, page.imagelength, most_pixels, planes)
        numbers = np.concatenate([_numbers(each, len(content)) for each in pages])
        if page.photometric == _WHITE_IS_0:
            numbers = _inverted(numbers, page.bitspersample)
        return Planes(numbers, page.bitspersample)


def require_pixels(width: int, height: int, most: int, planes: int = 1) -> None:
    """ValueError where a picture has more than `most` pixels of up to 4 planes (DATA.MAX_PIXELS).

    More planes count as more pixels: a compressed file can be a thousandth of its numbers.
    """
    if width * height * max(planes, 4) > 4 * most:
        of_planes = f" of {planes} planes" if planes > 4 else ""
        raise ValueError(
            f"it has {width} x {height} pixels{of_planes}, more than DATA.MAX_PIXELS = {most}: "
            "raise that where each loader worker has the memory"
        )


def num_pages(content: bytes, channels: int) -> tuple[int, int]:
    """Numbers of full-resolution pages that `read_tiff` takes and leaves out."""
    with TiffFile(io.BytesIO(content)) as file:
        used = len(_pages(file, channels))
        number = sum(1 for _ in _whole_pages(file))
        # ImageJ stores a large stack as one page; its text may be copied from another file.
        stack, page = (file.imagej_metadata or {}).get("images"), _pages(file, 1)[0]
        if isinstance(stack, int) and number < stack and stack * page.nbytes <= len(content):
            number = stack
        return used, number - used


def dtype_of(content: bytes) -> str:
    """The name of the type of numbers in the first full-resolution page."""
    with TiffFile(io.BytesIO(content)) as file:
        dtype = _pages(file, 1)[0].dtype
        return dtype.name if dtype is not None else "unknown"


def describe(page: TiffPage) -> str:
    """A page in words: "a TIFF of 13 x uint16"."""
    kind = page.dtype.name if page.dtype is not None else f"{page.bitspersample} bits"
    name = getattr(page.photometric, "name", page.photometric)
    special = "" if page.photometric in _PLANES else f", {name}"
    return f"a TIFF of {page.samplesperpixel} x {kind}{special}"


def describe_content(content: bytes) -> str:
    """A file's first full-resolution page in words, with its compression."""
    with TiffFile(io.BytesIO(content)) as file:
        page = _pages(file, 1)[0]
        compression = getattr(page.compression, "name", page.compression)
        return f"{describe(page)} (compression {compression})"


def _pages(file: TiffFile, channels: int) -> list[TiffPage]:
    """The pages that are the picture: one, or one for each of several channels."""
    whole = _whole_pages(file)
    first = next(whole, None)
    if first is None:
        raise ValueError("it is a TIFF without a full-resolution page")
    if channels == 1 or first.samplesperpixel != 1:
        return [first]
    pages = [first, *itertools.islice(whole, channels)]
    kinds = {(page.shape, page.dtype, page.photometric) for page in pages}
    return pages if len(pages) == channels and len(kinds) == 1 else [first]


def _whole_pages(file: TiffFile) -> Iterator[TiffPage]:
    """Pages that are pictures of their own: no overviews, thumbnails or masks."""
    seen: set[int] = set()
    for page in file.pages:
        if page.offset in seen:  # a damaged file's pages may lead back, without end
            return
        seen.add(page.offset)
        if isinstance(page, TiffPage) and not page.subfiletype & (_REDUCED | _MASK):
            yield page


def _suits_pil(page: TiffPage, channels: int) -> bool:
    """Whether PIL gives the numbers that the page holds."""
    known = page.sampleformat == _UNSIGNED and page.bitspersample in _BITS_OF_PIL
    # Of parts that a sparse file leaves out, PIL reads the file's beginning.
    if not known or page.imagedepth > 1 or 0 in page.dataoffsets:
        return False
    few, chunky = channels in (1, RGB), page.planarconfig == tifffile.PLANARCONFIG.CONTIG
    if _PREMULTIPLIED in page.extrasamples and not few:
        return False  # PIL divides the colours by it
    if page.samplesperpixel == 1 and not few:
        return False  # the error names the number of pages
    if page.bitspersample <= 8:
        # PIL drops planes whose meaning the file does not say, which may follow those of RGB only,
        # and opens no such file of planes one by one.
        dropped = page.photometric == PHOTOMETRIC.RGB and few and chunky
        named = 0 not in page.extrasamples or dropped
        most = 2 if page.photometric in (*_GREY, PHOTOMETRIC.PALETTE) else 4
        most = _MOST_BESIDE_RGB if dropped else most
        return named and page.samplesperpixel <= most
    if page.samplesperpixel == 1:
        return page.photometric == PHOTOMETRIC.MINISBLACK
    colours = page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.SEPARATED)
    return few and chunky and colours and page.samplesperpixel <= 4


def _numbers(page: TiffPage, size: int) -> np.ndarray:
    """Decode a page to (C, H, W), upright; a part that lies beyond the file is an error."""
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if start + length > size:
            raise ValueError("it is truncated")
    numbers = page.asarray()
    axes = page.axes
    if axes == "YX":
        numbers, axes = numbers[None], "SYX"
    if sorted(axes) != ["S", "X", "Y"]:
        raise ValueError(f"it is {describe(page)} with the axes {axes}, which is not read")
    numbers = numbers.transpose([axes.index(axis) for axis in "SYX"])
    tag = page.tags.get(_ORIENTATION)
    return _upright(numbers, int(tag.value) if tag is not None else 1)


def _upright(numbers: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (C, H, W) so that it stands as the tag Orientation says, which PIL does as well."""
    if orientation in (5, 6, 7, 8):
        numbers = numbers.transpose(0, 2, 1)
    if orientation in (3, 4, 7, 8):
        numbers = numbers[:, ::-1]
    if orientation in (2, 3, 6, 7):
        numbers = numbers[:, :, ::-1]
    return numbers


def _inverted(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers with a range, of which 0 is white, as numbers of which 0 is black."""
    if largest_of(numbers.dtype) is None:
        raise ValueError(f"its 0 is white, but {numbers.dtype.name} has no black: save it as .npy")
    return numbers.dtype.type(2**bits - 1) - numbers
