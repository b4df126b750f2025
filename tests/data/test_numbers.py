"""What a number in a file becomes: every row of the table in docs/pictures.md, by hand."""

import io
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.pictures import Decoder
from tests.support.raw_files import CMYK, PLANAR, RGB, WHITE_IS_0, png_bytes, tiff_bytes

PAGE = Path(__file__).parents[2] / "docs/pictures.md"


Numbers = list[list[float]]


@dataclass
class Case:
    """A file of 1 x 2 pixels, and its values by number of channels: planes, or words of refusal."""

    content: bytes
    values: dict[int, Any]
    name: str = "x"


def u8(*planes: Sequence[float]) -> np.ndarray:
    """uint8 (1, 2, C) of planes of two numbers each."""
    return as_type("u1", *planes)


def as_type(dtype: str, *planes: Sequence[float]) -> np.ndarray:
    return np.array(planes).T[None].astype(dtype)


def saved(picture: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    picture.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def array(pixels: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), pixels)
    return file.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    return image


def big_endian_big_tiff(pixels: np.ndarray) -> bytes:
    tifffile.imwrite(file := io.BytesIO(), pixels[..., 0], bigtiff=True, byteorder=">")
    return file.getvalue()


def bilevel() -> Image.Image:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    return image


GREY_OF_RED = [76]  # 0.299 x 255
BLACK_AND_RED = [[0, 255], [0, 0], [0, 0]]
SHORT = [[0x0180, 0xFF7F]]  # two bytes that differ: 384 and 65,407
RANGE = "with no range that says what 8-bit RGB"
OTHER = r"channel\(s\).*, the encoder takes"

GREY = {3: [[0, 200]] * 3, 1: [[0, 200 / 255]], 2: OTHER}
BITS = {3: [[0, 255]] * 3, 1: [[0, 1]], 2: OTHER}
COLOUR = {3: [[10, 200], [20, 100], [30, 0]], 1: [[18 / 255, 118 / 255]], 4: OTHER}
PLANES_OF_COLOUR = u8([10, 200], [20, 100], [30, 0])
ALPHA = u8([10, 10], [20, 20], [30, 30], [255, 0])
ON_WHITE = {3: [[10, 255], [20, 255], [30, 255]], 1: [[18 / 255, 1]]}
LONG = {3: [[1, 255]] * 3, 1: [[384 / 65535, 65407 / 65535]], 2: OTHER}
LONG_ON_WHITE = {3: [[255, 255]] * 3, 1: [[1, 65407 / 65535]], 2: OTHER}
COLOUR_16 = as_type("u2", *SHORT, [0, 0x0A00], [0x1400, 0])
LONG_COLOUR = {3: [[1, 255], [0, 10], [20, 0]], 1: [[3 / 255, 82 / 255]], 2: OTHER}
ALPHA_16 = ALPHA.astype("u2") * 257
REAL: Numbers = [[-1000.5, 2.0e6]]
SIGNED: Numbers = [[-1000, 1000]]


def grey_values(numbers: Numbers, planes: int = 1) -> dict[int, Any]:
    """Values of numbers without a range in a file of so many planes."""
    wanted: dict[int, Any] = {1: OTHER, 2: OTHER, 3: OTHER, 5: OTHER}
    wanted |= {3: RANGE} if planes == 1 else {}
    return wanted | {planes: numbers * planes}


ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
NO_RANGE: dict[str, Numbers] = {
    "i1": [[-100, 100]],
    "i2": SIGNED,
    "i4": [[-(2**20), 2**20]],
    "u4": [[70000, 2**31]],
    "f2": [[-0.5, 2.0]],
    "f4": REAL,
    "f8": REAL,
}


def of_planes(number: int, **options: Any) -> list[Case]:
    """Files of equal planes, of each type without a range, in both layouts and byte orders."""
    return [
        Case(
            tiff_bytes(as_type(dtype, *numbers * number), order=order, planar=planar, **options),
            grey_values(numbers, number),
        )
        for dtype, numbers in NO_RANGE.items()
        for order in ORDERS
        for planar in ((1, PLANAR) if number > 1 else (1,))
    ]


def transparent_colour(mode: str) -> bytes:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    if mode == "P":
        indexed = Image.new("P", (2, 1))
        indexed.putpalette([10, 20, 30, 1, 2, 3])
        indexed.putpixel((1, 0), 1)
        return saved(indexed, "PNG", transparency=1)
    return saved(image, "PNG", transparency=(1, 2, 3))


ROWS: dict[str, list[Case]] = {
    "grey of 1 to 8 bits": [
        *[Case(saved(u8([0, 200]), kind), GREY) for kind in ("PNG", "BMP", "TIFF", "PPM")],
        Case(tiff_bytes(u8([255, 55]), photometric=WHITE_IS_0), GREY),
        *[Case(saved(bilevel(), kind), BITS) for kind in ("PNG", "BMP", "TIFF", "PPM")],
        Case(saved(u8([0, 255]), "PNG", bits=2), BITS),
        Case(tiff_bytes(u8([0, 0]), bits=6, packed=b"\x03\xf0"), BITS),
        Case(b"P2 2 1 15 0 15", BITS),
    ],
    "palette": [
        Case(saved(palette(), kind), {3: BLACK_AND_RED, 1: [[0, 76 / 255]], 4: OTHER})
        for kind in ("PNG", "BMP")
    ]
    + [Case(saved(palette(), "TIFF"), {3: BLACK_AND_RED, 1: [[0, 76 / 255]], 4: OTHER})],
    "RGB of 8 bits": [
        *[Case(saved(PLANES_OF_COLOUR, kind), COLOUR) for kind in ("PNG", "BMP", "TIFF", "PPM")],
        Case(saved(PLANES_OF_COLOUR, "WEBP", lossless=True), COLOUR),
        *[
            Case(tiff_bytes(PLANES_OF_COLOUR, photometric=RGB, planar=planar, order=order), COLOUR)
            for planar in (1, PLANAR)
            for order in ORDERS
        ],
    ],
    "RGB with alpha, or with a transparent colour, of 8 bits": [
        *[
            Case(saved(ALPHA, kind), ON_WHITE | {4: ALPHA[0].T / 255, 2: OTHER})
            for kind in ("PNG", "TIFF")
        ],
        Case(transparent_colour("RGB"), ON_WHITE),
        Case(transparent_colour("P"), ON_WHITE),
    ],
    "grey with alpha of 8 bits": [
        Case(
            saved(u8([100, 100], [255, 0]), kind),
            {
                3: [[100, 255]] * 3,
                1: [[100 / 255, 1]],
                2: np.array([[100, 100], [255, 0]]) / 255,
                4: OTHER,
            },
        )
        for kind in ("PNG", "TIFF")
    ],
    "CMYK of 8 bits, or of 16 bits in TIFF": [
        Case(
            tiff_bytes(
                as_type(dtype, [0, largest], [0, 0], [0, 0], [0, 0]),
                photometric=CMYK,
                planar=planar,
                order=order,
            ),
            {3: [[255, 0], [255, 255], [255, 255]], 4: [[0, 1], [0, 0], [0, 0], [0, 0]], 5: OTHER},
        )
        for dtype, largest, planar in (("u1", 255, 1), ("u1", 255, PLANAR), ("u2", 65535, 1))
        for order in ORDERS
    ],
    "grey of 9 to 16 bits": [
        Case(saved(as_type("u2", *SHORT), "PNG"), LONG),
        Case(b"P2 2 1 65535 384 65407", LONG),
        Case(b"P2 2 1 4095 0 4095", BITS),
        *[
            Case(tiff_bytes(as_type("u2", *white), photometric=photometric, order=order), LONG)
            for order in ORDERS
            for photometric, white in ((1, SHORT), (WHITE_IS_0, [[65535 - 384, 65535 - 65407]]))
        ],
        Case(big_endian_big_tiff(as_type("u2", *SHORT)), LONG),
        Case(  # 0x018 and 0xFF7 in three bytes
            tiff_bytes(u8([0, 0]), bits=12, packed=b"\x01\x8f\xf7"),
            {3: [[1, 255]] * 3, 1: [[0x018 / 4095, 0xFF7 / 4095]]},
        ),
    ],
    "grey with a transparent value": [
        Case(saved(as_type("u2", *SHORT), "PNG", transparency=384), LONG_ON_WHITE),
        *[  # the value counts in the file's bits
            Case(
                saved(u8([step, 0]), "PNG", bits=bits, transparency=1),
                {3: [[255, 0]] * 3, 1: [[1, 0]], 2: OTHER},
            )
            for bits, step in ((2, 85), (4, 17), (8, 1))
        ],
    ],
    "RGB of 16 bits": [
        Case(
            tiff_bytes(COLOUR_16, photometric=RGB, planar=planar, order=order),
            LONG_COLOUR,
        )
        for planar in (1, PLANAR)
        for order in ORDERS
    ]
    + [Case(png_bytes(COLOUR_16, 2), LONG_COLOUR)],
    "RGB of 16 bits with a transparent colour": [
        Case(
            png_bytes(COLOUR_16, 2, struct.pack(">3H", 0x0180, 0, 0x1400)),
            {3: [[255, 255], [255, 10], [255, 0]], 1: [[1, 82 / 255]], 4: OTHER},
        ),
        Case(png_bytes(COLOUR_16, 2, struct.pack(">3H", 1, 0, 20)), LONG_COLOUR),
    ],
    "RGB with alpha of 16 bits, PNG": [Case(png_bytes(ALPHA_16, 6), ON_WHITE | {4: "16 bits"})],
    "RGB with alpha of 16 bits, TIFF": [
        Case(
            tiff_bytes(ALPHA_16, photometric=RGB, extra=2, order=order),
            ON_WHITE | {4: ALPHA_16[0].T / 65535, 5: OTHER},
        )
        for order in ORDERS
    ],
    "grey with alpha of 16 bits, PNG": [
        Case(
            png_bytes(as_type("u2", [0x6400, 0x6400], [65535, 0]), 4),
            {3: [[100, 255]] * 3, 1: [[100 / 255, 1]], 2: "16 bits", 4: OTHER},
        )
    ],
    "grey, signed or of 32 bits or real, TIFF": of_planes(1),
    "three planes, signed or of 32 bits or real, TIFF": [
        *of_planes(3),
        *of_planes(3, photometric=RGB),
    ],
    "RGB and up to three further planes, TIFF": [
        *[
            Case(
                tiff_bytes(np.dstack([ALPHA, *[ALPHA[..., :1]] * more]), photometric=RGB),
                {3: [[10, 10], [20, 20], [30, 30]], 1: [[18 / 255, 18 / 255]], 2: OTHER},
            )
            for more in (0, 1, 2)
        ],
        Case(tiff_bytes(ALPHA, photometric=RGB), {4: ALPHA[0].T / 255, 5: OTHER}),
        Case(
            tiff_bytes(ALPHA_16, photometric=RGB, planar=PLANAR),
            {3: OTHER, 1: OTHER, 4: ALPHA[0].T / 255},
        ),
        Case(
            tiff_bytes(ALPHA, photometric=RGB, planar=PLANAR),
            {3: OTHER, 1: OTHER, 4: ALPHA[0].T / 255},
        ),
        *[
            Case(
                tiff_bytes(as_type(dtype, *[[1, 2]] * 5), photometric=RGB, planar=planar),
                {3: OTHER, 1: OTHER, 5: [[1 / largest, 2 / largest]] * 5},
            )
            for dtype, largest, planar in (
                ("u1", 255, PLANAR),
                ("u2", 65535, PLANAR),
                ("u2", 65535, 1),
            )
        ],
    ],
    "two, four or more planes of 8 or 16 bits, TIFF": [
        Case(
            tiff_bytes(as_type(dtype, *[numbers] * 13), planar=planar, order=order, photometric=ph),
            {13: [[value / largest for value in given]] * 13, 1: OTHER, 3: OTHER, 12: OTHER},
        )
        for dtype, largest, numbers in (("u1", 255, [7, 200]), ("u2", 65535, SHORT[0]))
        for planar in (1, PLANAR)
        for order in ORDERS
        for ph, given in ((1, numbers), (WHITE_IS_0, [largest - number for number in numbers]))
    ],
    "planes, signed or of 32 bits or real, TIFF": [*of_planes(2), *of_planes(5)],
    "pages of one plane, TIFF": [
        Case(
            tiff_bytes(*[as_type(dtype, [number, 0]) for number in numbers]),
            {
                1: [[numbers[0] / largest, 0]],
                3: [[number >> shift, 0] for number in numbers],
                2: "3 pages",
                4: "3 pages",
            },
        )
        for dtype, largest, shift, numbers in (
            ("u1", 255, 0, [10, 20, 30]),
            ("u2", 65535, 8, [384, 65407, 1000]),
        )
    ]
    + [
        Case(  # of other sizes: no channels
            tiff_bytes(u8([10, 0]), u8([20, 0, 0]), u8([30, 0])),
            {1: [[10 / 255, 0]], 3: [[10, 0]] * 3},
        ),
        Case(  # an overview, and a mask
            tiff_bytes(u8([10, 0]), u8([20, 0]), u8([30, 0]), subfiles=(0, 1, 4)),
            {1: [[10 / 255, 0]], 3: [[10, 0]] * 3},
        ),
        Case(  # a thumbnail first
            tiff_bytes(u8([10, 0]), u8([20, 0]), subfiles=(1, 0)),
            {1: [[20 / 255, 0]], 3: [[20, 0]] * 3},
        ),
        Case(
            tiff_bytes(*[as_type("f4", [number, 0.5]) for number in range(5)]),
            {1: [[0, 0.5]], 5: [[number, 0.5] for number in range(5)], 3: RANGE},
        ),
    ],
    "array of truth values, uint8 or uint16": [
        Case(array(as_type(dtype, *[numbers] * planes)), values, "x.npy")
        for planes in (1, 3, 13)
        for dtype, largest, numbers in (
            ("?", 1, [0, 1]),
            ("u1", 255, [7, 200]),
            ("<u2", 65535, SHORT[0]),
            (">u2", 65535, SHORT[0]),
        )
        for values in [{planes: [[number / largest for number in numbers]] * planes, 4: "shape"}]
    ],
    "array, signed or of 32 bits or real": [
        Case(array(as_type(order + dtype, *numbers * planes)), {planes: numbers * planes}, "x.npy")
        for planes in (1, 3, 13)
        for dtype, numbers in (NO_RANGE | {"i8": [[-(2**40), 5]], "u8": [[2**40, 5]]}).items()
        for order in ORDERS
    ],
    "array of complex numbers, words or objects": [
        Case(array(pixels), {1: words}, "x.npy")
        for pixels, words in (
            (np.zeros((1, 2), np.complex64), "holds complex64, expected real numbers"),
            (np.array([["a", "b"]]), "expected real numbers"),
            (np.array([[{}, None]]), "holds object, expected real numbers"),
            (np.array([[0.0, np.nan]]), "1 of its 2 numbers are NaN, infinite or beyond float32"),
            (np.array([[0.0, 1e300]]), "1 of its 2 numbers are NaN, infinite or beyond float32"),
        )
    ],
}


def rows_of_the_page() -> list[str]:
    text = PAGE.read_text(encoding="utf-8").partition("|---|---|---|---|\n")[2]
    return re.findall(r"^\| (.*?) \|", text.partition("\n\n")[0], re.MULTILINE)


def test_the_page_has_a_row_for_everything_that_is_tried_and_nothing_else() -> None:
    assert rows_of_the_page() == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_numbers_become_what_the_page_says(row: str) -> None:
    for number, case in enumerate(ROWS[row]):
        for channels, expected in case.values.items():
            where = f"{row}, file {number}, {channels} channel(s)"
            if isinstance(expected, str):
                with pytest.raises(ValueError, match=expected) as error:
                    Decoder(channels)(case.content, case.name)
                assert "\n" not in str(error.value)
                continue
            found = Decoder(channels)(case.content, case.name)
            pixels = np.asarray(found)
            if isinstance(found, Image.Image):
                assert (found.mode, channels) == ("RGB", 3), where
                np.testing.assert_array_equal(pixels[0].T, expected, where)
            else:
                assert pixels.dtype == np.float32, where
                wanted = np.array(expected, np.float32)[:, None]
                np.testing.assert_allclose(pixels, wanted, rtol=1e-6, err_msg=where)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", [(), (3,)])
def test_parts_that_a_sparse_tiff_leaves_out_are_its_value_for_missing_data(
    compression: str | None, planes: tuple[int, ...]
) -> None:
    tiles = iter([np.full((16, 16, *planes), 7, np.uint8), None])
    tifffile.imwrite(
        file := io.BytesIO(),
        tiles,
        shape=(16, 32, *planes),
        dtype=np.uint8,
        tile=(16, 16),
        photometric="rgb" if planes else "minisblack",
        compression=compression,
    )
    found = np.asarray(Decoder(3)(file.getvalue(), "x.tif"))
    assert (found[:, :16] == 7).all()
    assert (found[:, 16:] == 0).all()


def test_a_tiff_stands_as_its_tag_says_however_it_is_read() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    for orientation in range(1, 9):
        by_pil = Decoder(1)(tiff_bytes(pixels, orientation=orientation), "x.tif")
        numbers = pixels.astype(np.float32) / 255
        by_tifffile = Decoder(1)(tiff_bytes(numbers, orientation=orientation), "x.tif")
        np.testing.assert_allclose(np.asarray(by_tifffile), np.asarray(by_pil), rtol=1e-6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_pictures_only_where_that_is_wanted(kind: str) -> None:
    image = Image.new("RGB", (32, 16), "blue")
    image.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the left side is the top
    content = saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    for fast in (False, True):
        found: Any = Decoder(fast=fast)(content, "x.jpg")
        shape = found.shape if not isinstance(found, Image.Image) else np.asarray(found).shape
        assert sorted(shape) == [3, 16, 32]
        assert (found.size if isinstance(found, Image.Image) else found.shape[:0:-1]) == (32, 16)
        turned = Decoder(fast=fast, oriented=True)(content, "x.jpg")
        assert isinstance(turned, Image.Image)
        assert turned.size == (16, 32)
        assert turned.getpixel((8, 4)) == pytest.approx((255, 0, 0), abs=3)
        assert turned.getpixel((8, 28)) == pytest.approx((0, 0, 255), abs=3)


def test_a_jpeg_without_exif_stays_on_the_fast_path_where_pictures_are_turned() -> None:
    content = saved(Image.new("RGB", (32, 16), "blue"), "JPEG")
    assert not isinstance(Decoder(fast=True, oriented=True)(content, "x.jpg"), Image.Image)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_the_largest_picture_is_the_configurations(name: str) -> None:
    large = as_type("i2", [0] * 300) if name == "a.tif" else None
    content = (
        saved(Image.new("RGB", (300, 1)), "PNG" if name == "a.png" else "JPEG")
        if large is None
        else tiff_bytes(large)
    )
    for fast in (False, True):
        with pytest.raises(ValueError, match=r"300 x 1 pixels, more than DATA\.MAX_PIXELS = 299"):
            Decoder(1 if name == "a.tif" else 3, fast, most_pixels=299)(content, name)
        Decoder(1 if name == "a.tif" else 3, fast, most_pixels=300)(content, name)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    content = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    scan = content[content.index(b"\xff\xda") :].removesuffix(b"\xff\xd9")
    with pytest.raises(ValueError, match=r"x\.jpg .*: it is a JPEG of more than 500 scans"):
        Decoder(fast=True)(content.removesuffix(b"\xff\xd9") + scan * 500 + b"\xff\xd9", "x.jpg")


def test_a_tiff_that_ends_early_or_is_no_tiff_is_refused() -> None:
    content = tiff_bytes(as_type("i2", *[[1, 2]] * 13))
    with pytest.raises(ValueError, match="it is truncated"):
        Decoder(13)(content[:-1], "x.tif")
    for cut in range(4, len(content) - 60, 7):
        with pytest.raises(ValueError, match=r"x\.tif cannot be read as a picture: "):
            Decoder(13)(content[:cut], "x.tif")


@pytest.mark.slow
def test_compressed_planes_need_a_package_that_the_message_names(tmp_path: Path) -> None:
    pixels = np.arange(13 * 64, dtype=np.uint16).reshape(13, 8, 8)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels, planarconfig="separate", compression="lzw", photometric=1)
    found = np.asarray(Decoder(13)(path.read_bytes(), "x.tif"))
    np.testing.assert_allclose(found, pixels / np.float32(65535), rtol=1e-6)
    program = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from data.pictures import Decoder\n"
        f"content = open({str(path)!r}, 'rb').read()\n"
        "try:\n    Decoder(13)(content, 'x.tif')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = run.stdout
    assert "x.tif cannot be read as a picture: " in said
    assert "imagecodecs" in said
