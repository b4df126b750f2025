"""Large JPEG files are decoded at a fraction of their size, and their crops stay what they were."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.build import build_pretrain_dataset
from data.pictures import Decoder, Reduced
from data.transforms import CropAndFlip, pretrain_transform
from tests.support.small_runs import write_config
from utils.config import get_config


def photograph(width: int, height: int, kind: str) -> bytes:
    """A JPEG of noise whose amplitude falls with frequency, as in nature; of edges; of noise."""
    random = np.random.default_rng(0)
    if kind == "natural":
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
        frequency[0, 0] = 1
        phases = random.normal(size=(3, *frequency.shape, 2)) @ np.array([1, 1j])
        planes = np.fft.irfft2(phases / frequency, (height, width))
        pixels = np.moveaxis(planes / planes.std() * 50 + 128, 0, 2)
    elif kind == "noise":
        pixels = random.integers(0, 256, (height, width, 3))
    else:
        pixels = np.full((height, width, 3), 128)
        for _ in range(300):
            top, left, side = random.integers(0, (height, width, height // 6))
            pixels[top : top + side, left : left + side] = random.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def cropped(crop: CropAndFlip, content: bytes, reduces: bool) -> torch.Tensor:
    """A crop that the seed determines."""
    torch.manual_seed(3)
    decode = Decoder(fast=True, reduction=crop.reduction if reduces else None)
    picture = decode(content, "x.jpg")
    assert isinstance(picture, Reduced) == reduces
    return crop(picture).float()


@pytest.mark.parametrize("kind", ["natural", "edges", "noise"])
@pytest.mark.parametrize(("width", "height"), [(2000, 1500), (1001, 1503), (1500, 377)])
def test_the_crop_of_a_reduced_photograph_is_that_of_the_whole_one(
    kind: str, width: int, height: int
) -> None:
    """The same place, mirrored alike, and within 1 of 255 in the mean; sides need not divide."""
    content = photograph(width, height, kind)
    for side in (min(width, height) // 9, (width // 40, height // 40)):
        crop = pretrain_transform(side)
        found, expected = (cropped(crop, content, reduces) for reduces in (True, False))
        assert found.shape == expected.shape
        assert (found - expected).abs().mean() < 1


@pytest.mark.parametrize(
    ("width", "height", "divisor"),
    [
        *[
            (500, 375, 1),
            (1500, 1100, 1),
            (1800, 1500, 2),
            (4000, 3000, 4),
            (3000, 4000, 4),
            (1880, 1410, 2),  # where three pixels are just reached
            (1870, 1402, 1),
        ],
        *[(8000, 6000, 8), (40000, 30000, 8), (6000, 600, 1), (12000, 1200, 2), (192, 192, 1)],
    ],
)
def test_three_pixels_remain_for_each_of_the_smallest_crop(
    width: int, height: int, divisor: int
) -> None:
    crop = pretrain_transform(192)
    assert crop.reduction(height, width) == divisor
    picture = torch.empty(1, 1, 1).expand(3, height, width)
    sides = [crop_sides(crop, picture) for _ in range(300)]
    if divisor > 1:
        assert min(map(min, sides)) / divisor >= 3 * 192 - 1


def crop_sides(crop: CropAndFlip, picture: torch.Tensor) -> tuple[int, int]:
    from torchvision.transforms import RandomResizedCrop

    _, _, height, width = RandomResizedCrop.get_params(picture, crop.scale, crop.ratio)
    return height, width


def test_a_data_set_reduces_large_jpeg_files_unless_pixels_are_to_be_those_of_pil(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.jpg").write_bytes(photograph(1000, 750, "edges"))
    kinds: list[Any] = []
    for decoder in ("fast", "pil"):
        opts = ["DATA.DATASET", "imagenet", "DATA.DATA_PATH", str(tmp_path / "data")]
        cfg = get_config(str(write_config(tmp_path)), [*opts, "DATA.DECODER", decoder])
        dataset = build_pretrain_dataset(cfg, patch_size=4)
        kinds.append(dataset.pictures.read(0, 0)[0])
        image, _ = dataset[0, 0]
        assert image.shape == (3, 32, 32)
    assert isinstance(kinds[0], Reduced)
    assert (kinds[0].width, kinds[0].height, kinds[0].divisor) == (1000, 750, 4)
    assert isinstance(kinds[1], Image.Image)
    assert kinds[1].size == (1000, 750)


def test_a_large_photograph_that_is_cut_off_is_refused() -> None:
    content = photograph(1000, 750, "edges")
    for length in (len(content) - 2000, len(content) // 2):
        with pytest.raises(ValueError, match=r"x\.jpg cannot be read as a picture"):
            Decoder(fast=True, reduction=lambda height, width: 4)(content[:length], "x.jpg")


def test_a_large_photograph_is_turned_where_that_is_wanted() -> None:
    image, file, exif = Image.new("RGB", (1000, 750), "blue"), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    turned = Decoder(fast=True, oriented=True, reduction=lambda height, width: 4)
    found = turned(file.getvalue(), "x.jpg")
    assert isinstance(found, Image.Image)
    assert found.size == (750, 1000)
