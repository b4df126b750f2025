"""What the log says at the start of files that training would read otherwise than expected."""

import io
import resource
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.first_look import FirstLook, first_look
from data.pictures import Decoder, Picture
from data.sources import Shapes
from data.transforms import Normalizer
from tests.support.raw_files import tiff_bytes
from utils.memory import keep_freed_memory


class Files:
    """Contents of files under the name of a type."""

    def __init__(self, contents: list[bytes], suffix: str, decode: Decoder) -> None:
        self.contents, self.suffix, self.decode = contents, suffix, decode

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        return self.decode(self.contents[index], self.name(index)), 0

    def content(self, index: int) -> bytes:
        return self.contents[index]

    def name(self, index: int) -> str:
        return f"{index}.{self.suffix}"


def look(
    contents: list[bytes], channels: int = 3, suffix: str = "png", **options: Any
) -> FirstLook:
    normalize = Normalizer(**options, channels=channels)
    return first_look(Files(contents, suffix, Decoder(channels)), normalize)


def png(picture: Image.Image | np.ndarray, **options: Any) -> bytes:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(file := io.BytesIO(), options.pop("format", "PNG"), **options)
    return file.getvalue()


def array(pixels: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), pixels)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return png(Image.new("RGB", (8, 8)), format="JPEG", exif=exif)


def test_a_folder_of_ordinary_pictures_is_described_without_a_warning() -> None:
    found = look([png(Image.new("RGB", (8, 8)))] * 3)
    assert found.notes == ["a sample of 3 files holds numbers of these types: 3 of uint8"]
    assert not found.warnings


def test_files_that_exif_turns_are_counted() -> None:
    found = look([turned(1), turned(6), turned(3), b"broken"])
    assert found.notes[1] == (
        "2 of 3 sampled files carry an EXIF orientation, "
        "which only DATA.EXIF_ORIENTATION True applies"
    )


ANIMATION = png(
    Image.new("L", (8, 8)), save_all=True, append_images=[Image.new("L", (8, 8), 9)] * 2
)


@pytest.mark.parametrize(
    ("content", "channels", "unused"),
    [
        (ANIMATION, 3, True),
        (tiff_bytes(*[np.zeros((8, 8), np.uint8)] * 3), 1, True),
        (tiff_bytes(*[np.zeros((8, 8), np.uint8)] * 3), 3, False),
        (tiff_bytes(*[np.zeros((8, 8), np.uint8)] * 3, subfiles=(0, 1, 1)), 1, False),
    ],
)
def test_frames_and_pages_that_are_not_used_are_counted(
    content: bytes, channels: int, unused: bool
) -> None:
    mean, std = [0.0] * channels, [1.0] * channels
    warnings = look([content] * 2, channels, mean=mean, std=std).warnings
    assert any("2 of 2 sampled files have frames or pages" in line for line in warnings) == unused


def test_pages_that_lead_back_to_the_first_end() -> None:
    content = bytearray(tiff_bytes(np.zeros((8, 8), np.uint8)))
    (first,) = struct.unpack_from("<I", content, 4)
    (number,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * number, first)
    assert not look([bytes(content)], 1, mean=[0], std=[1]).warnings


def test_files_whose_pages_are_the_channels_are_counted() -> None:
    page = np.zeros((8, 8), np.uint8)
    note = "1 of 2 sampled files are TIFF of 3 pages, which are read as channels"
    assert note in look([tiff_bytes(page, page, page), tiff_bytes(page, page)]).notes


def ramp(bits: int) -> np.ndarray:
    return np.arange(2**bits, dtype=np.uint16).reshape(2 ** (bits // 2), -1)


@pytest.mark.parametrize(("bits", "warned"), [(12, True), (16, False), (14, False)])
@pytest.mark.parametrize("write", [png, tiff_bytes])
def test_12_of_16_bits_that_8_bits_would_hardly_show_are_named(
    bits: int, warned: bool, write: Callable[[np.ndarray], bytes]
) -> None:
    warnings = look([write(ramp(bits))] * 2).warnings
    assert bool(warnings) == warned
    if warned:
        assert (
            "is 4095 of 65535: 8-bit RGB keeps 16 levels of it; train with IN_CHANS" in warnings[0]
        )


def test_numbers_far_from_their_mean_and_deviation_are_named_with_their_own() -> None:
    random = np.random.default_rng(0)
    contents = [array(random.normal(100, 500, (2, 32, 32)).astype("f4")) for _ in range(4)]
    (warning,) = look(contents, 2, "npy", mean=[0.5], std=[0.2]).warnings
    assert "DATA.MEAN and DATA.STD do not fit the sampled pictures" in warning
    assert "the pictures' own are [10" in warning or "the pictures' own are [9" in warning
    assert not look(contents, 2, "npy", mean=[100.0], std=[500.0]).warnings


def test_numbers_with_and_without_a_range_are_not_mixed_without_a_word() -> None:
    one, other = np.ones((8, 8), np.uint8), np.full((8, 8), -3, np.int16)
    warnings = look([tiff_bytes(one), tiff_bytes(other)], 1, mean=[0.0], std=[1.0]).warnings
    assert any("with and without a range" in line for line in warnings)


def test_a_file_that_no_picture_comes_of_is_left_to_training() -> None:
    wrong = [np.zeros((4, 4), [("a", "f4")]), np.array([["word"]])]
    contents = [*map(array, wrong), array(np.eye(8, dtype=np.uint8) * 255)]
    found = look(contents, 1, "npy", mean=[0.1], std=[0.3])
    assert found.notes == ["a sample of 1 files holds numbers of these types: 1 of uint8"]
    assert not look(
        [tiff_bytes(np.zeros((4, 4), np.float32), bits=8)], 1, "tif", mean=[0], std=[1]
    ).notes


def test_a_channel_of_one_number_gives_no_deviation_to_normalize_by() -> None:
    opaque = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    opaque[..., 3] = 255
    assert not look([png(opaque)] * 2, 4, mean=[0.5], std=[0.25]).warnings


def test_a_data_set_without_files_is_not_looked_at() -> None:
    found = first_look(Shapes(10, 32, train=True), Normalizer())
    assert (found.notes, found.warnings) == ([], [])


def test_the_first_look_decodes_no_picture_beyond_the_limit() -> None:
    """PIL would, to find EXIF behind the pixels; memory that is kept is cleared, and so used."""
    keep_freed_memory()
    small = png(Image.new("RGB", (8, 8)))
    header = b"IHDR" + 2 * struct.pack(">I", 10_000) + small[24:29]
    huge = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    files = Files([huge, small], "png", Decoder(most_pixels=10**6))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    assert "a sample of 1 files" in first_look(files, Normalizer()).notes[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**5
