"""TIFF files of other programs: alpha, premultiplied or inverted, and stacks of ImageJ."""

import io
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from data.pictures import Decoder
from data.tiff import num_pages


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_multiplied_by_alpha_stay_so_as_planes_and_lie_on_white_as_rgb(bits: int) -> None:
    kind = np.dtype(f"u{bits // 8}")
    pixel = np.array([[[100, 50, 0, 128]]], kind) * kind.type(257 if bits == 16 else 1)
    file = io.BytesIO()
    tifffile.imwrite(
        file, np.tile(pixel, (8, 8, 1)), photometric="rgb", extrasamples=["assocalpha"]
    )
    planes: Any = Decoder(4)(file.getvalue(), "x.tif")
    torch.testing.assert_close(planes[:, 0, 0], torch.tensor([100.0, 50, 0, 128]) / 255)
    rgb = np.asarray(Decoder()(file.getvalue(), "x.tif"))
    np.testing.assert_allclose(rgb[0, 0], [227, 177, 127], atol=1)  # premultiplied + 255 - alpha


def test_grey_multiplied_by_alpha_lies_on_white() -> None:
    file = io.BytesIO()
    pixels = np.tile(np.array([[[100, 128]]], np.uint8), (8, 8, 1))
    tifffile.imwrite(file, pixels, photometric="minisblack", extrasamples=["assocalpha"])
    assert np.asarray(Decoder()(file.getvalue(), "x.tif"))[0, 0].tolist() == [227] * 3


def test_a_stack_of_imagej_in_one_page_has_unused_pages() -> None:
    file = io.BytesIO()
    stack = np.zeros((3, 8, 9), np.uint8)
    tifffile.imwrite(file, stack, imagej=True, truncate=True)
    assert num_pages(file.getvalue(), 1) == (1, 2)
    for text in ("ImageJ=1.11a\nimages=abc", "ImageJ=1.11a\nimages=30", "ImageJ=1.11a\nimages="):
        file = io.BytesIO()  # a slice of it, with a text that is of the stack, or of nothing
        tifffile.imwrite(file, stack[0], description=text, metadata=None)
        assert num_pages(file.getvalue(), 1) == (1, 0)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", ["assocalpha", "unassalpha"])
def test_grey_with_alpha_and_0_as_white_is_refused(kind: Any, alpha: str) -> None:
    file = io.BytesIO()
    pixels = np.full((8, 8, 2), 100, kind)
    tifffile.imwrite(file, pixels, photometric="miniswhite", extrasamples=[alpha])
    for channels in (1, 2, 3):
        with pytest.raises(ValueError, match=r"which is not read|channel"):
            Decoder(channels)(file.getvalue(), "x.tif")
