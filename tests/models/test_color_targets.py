"""Colours as classes: bins and clusters on hand-made images, and files that are no codebook."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn import functional as F

from models.color_targets import ColorBins, ColorClusters, Colors, read_codebook
from tests.support.codebooks import write_codebook
from tests.support.small_encoders import sample, small_model

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CENTRES = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0.5, 0.5, 0.5]], np.float32)
BINS = ["MODEL.SIMMIM.TARGET", "color_bins", "MODEL.SIMMIM.LOSS", "cross_entropy"]
CLUSTERS = ["MODEL.SIMMIM.TARGET", "color_clusters", "MODEL.SIMMIM.LOSS", "cross_entropy"]
NUMBER = "MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER"
CODEBOOK = "MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK"


def colors() -> Colors:
    return Colors(MEAN, STD)


def image_of(*pixels: list[float]) -> Tensor:
    """One row of these colours, normalized: (1, 3, 1, W)."""
    return colors().normalized(torch.tensor(pixels).T.view(1, 3, 1, -1))


def sure(classes: Tensor, number: int) -> Tensor:
    """A prediction whose highest scores are these classes (B, C, H, W): (B, C * number, H, W)."""
    return F.one_hot(classes, number).movedim(-1, 2).flatten(1, 2).float()


def test_bins_are_equal_parts_of_the_numbers_before_normalization() -> None:
    target = ColorBins(4, colors())
    image = image_of([0.0, 0.24, 0.26], [0.49, 0.51, 0.76], [0.999, 1.0, 0.5])
    assert target(image)[0, :, 0].T.tolist() == [[0, 0, 1], [1, 2, 3], [3, 3, 2]]
    assert target(image).dtype == torch.int64


def test_numbers_out_of_range_lie_in_the_outer_bins() -> None:
    assert ColorBins(8, colors())(image_of([-3.0, 1.5, 2.0])).flatten().tolist() == [0, 7, 7]


@pytest.mark.parametrize("number", [2, 3, 5, 8, 15, 17, 51, 85, 255, 256])
def test_the_bin_of_every_8_bit_number_is_that_of_exact_arithmetic(number: int) -> None:
    values = torch.arange(256)
    image = colors().normalized((values.float() / 255).view(1, 1, 1, -1).expand(1, 3, 1, -1))
    expected = (values * number // 255).clamp(max=number - 1)
    assert torch.equal(
        ColorBins(number, colors())(image), expected.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    )


def test_a_sure_prediction_of_bins_gives_their_centres() -> None:
    target, image = ColorBins(4, colors()), image_of([0.1, 0.3, 0.6], [0.9, 0.0, 1.0])
    drawn = colors()(target.to_pixels(sure(target(image), 4), image))
    expected = torch.tensor([[0.125, 0.375, 0.625], [0.875, 0.125, 0.875]])
    torch.testing.assert_close(drawn[0, :, 0].T, expected)


def test_a_cluster_is_the_nearest_colour() -> None:
    target = ColorClusters(CENTRES, colors())
    image = image_of([0.1, 0.1, 0.1], [0.9, 1.0, 0.8], [0.8, 0.1, 0.2], [0.6, 0.4, 0.5])
    assert target(image).tolist() == [[[[0, 1, 2, 3]]]]
    drawn = colors()(target.to_pixels(sure(target(image), 4), image))
    torch.testing.assert_close(drawn[0, :, 0].T, torch.tensor(CENTRES))


def test_clusters_of_a_batch_are_those_of_each_image() -> None:
    target = ColorClusters(CENTRES, colors())
    images = torch.randn(3, 3, 4, 6)
    found = target(images)
    assert found.shape == (3, 1, 4, 6)
    for one, image in zip(found, images, strict=True):
        distances = (colors()(image).flatten(1).T[:, None] - torch.tensor(CENTRES)).square().sum(2)
        assert torch.equal(one.flatten(), distances.argmin(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target(images), found), "mixed precision would round the distances"


def test_a_shrunk_target_has_the_bins_of_mean_colours() -> None:
    model = small_model("swin", *BINS, "MODEL.SIMMIM.TARGET_SHRINK", 4)
    image, mask = sample(model)
    mean = F.avg_pool2d(colors()(image), 4)
    assert torch.equal(model.target(image), (mean * 8).floor().clamp(0, 7).long())
    assert model.predict(image, mask).shape == (2, 24, 8, 8)
    assert model.reconstruct(image, mask).shape == image.shape


def test_a_codebook_is_read_as_it_was_written(tmp_path: Path) -> None:
    centres = write_codebook(tmp_path / "x.safetensors", 5)
    assert np.array_equal(read_codebook(tmp_path / "x.safetensors", 5), centres)
    model = small_model("swin", *CLUSTERS, CODEBOOK, str(tmp_path / "x.safetensors"), NUMBER, 5)
    assert model.predict(*sample(model)).shape == (2, 5, 32, 32)
    assert "target.centres" not in model.state_dict()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"centres": CENTRES.T.copy()}, r"holds .*\(3, 4\).*expected `centres`, real numbers"),
        ({"centres": CENTRES.astype(np.int64)}, "int64"),
        ({"colours": CENTRES}, "colours"),
        (
            {"centres": CENTRES[:1]},
            r"has 1 centre\(s\), expected 4 by MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER",
        ),
        ({"centres": CENTRES * 255}, "from 0 to 255, expected colours from 0 to 1"),
        ({"centres": CENTRES - 0.5}, "from -0.5 to 0.5"),
        ({"centres": CENTRES * np.float32(np.nan)}, "from nan to nan"),
    ],
)
def test_a_file_that_is_no_codebook_is_refused(
    tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x\.safetensors.*{message}") as caught:
        read_codebook(tmp_path / "x.safetensors", 4)
    assert "\n" not in str(caught.value)


def test_a_missing_damaged_or_enormous_codebook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs MODEL\.SIMMIM\.COLOR_CLUSTERS\.CODEBOOK"):
        read_codebook("", 4)
    path = tmp_path / "x.safetensors"
    for content in (None, b"", b"nonsense", b"\xff" * 100, bytes(2**22 + 1)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors' cannot be read") as caught:
            read_codebook(path, 4)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_codebook(tmp_path, 4)


def test_clusters_need_rgb(tmp_path: Path) -> None:
    write_codebook(tmp_path / "x.safetensors", 5)
    opts = [
        *CLUSTERS,
        CODEBOOK,
        str(tmp_path / "x.safetensors"),
        NUMBER,
        5,
        "MODEL.SWIN.IN_CHANS",
        4,
    ]
    with pytest.raises(ValueError, match=r"images of 3 channels.*have 4"):
        small_model("swin", *opts)


def test_bins_follow_the_channels_of_the_image() -> None:
    opts = ["MODEL.SWIN.IN_CHANS", 4, "DATA.MEAN", [0.5], "DATA.STD", [0.25]]
    model = small_model("swin", *BINS, *opts)
    assert model.predict(*sample(model)).shape == (2, 4 * 8, 32, 32)
    model(*sample(model)).backward()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.SIMMIM.LOSS", "l1"], "LOSS l1 does not fit .* color_bins.*choices: cross_entropy"),
        (["MODEL.SIMMIM.TARGET", "pixels"], "cross_entropy does not fit .*choices: l1, l2, smooth"),
        (["MODEL.SIMMIM.NORM_TARGET.ENABLE", True], "NORM_TARGET.ENABLE is for pixels"),
        (["MODEL.SIMMIM.COLOR_BINS.NUMBER", 1], "NUMBER is 1, expected from 2 to 256"),
        (["MODEL.SIMMIM.COLOR_BINS.NUMBER", 257], "NUMBER is 257, expected from 2 to 256"),
        (["MODEL.SIMMIM.SCOPE", "visible"], "SCOPE is 'visible'; choices: hidden, all"),
    ],
)
def test_what_does_not_fit_bins_is_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model("swin", *BINS, *opts)


def test_a_prediction_of_many_gigabytes_is_refused_unless_it_is_allowed() -> None:
    large = [*BINS, "MODEL.SIMMIM.COLOR_BINS.NUMBER", 256, "DATA.IMG_SIZE", 192]
    large += ["DATA.BATCH_SIZE", 128]
    size = r"768 numbers for each of 192 x 192 places: 13\.5 GiB .* 128 images"
    with pytest.raises(ValueError, match=f"{size}.*MODEL.SIMMIM.MAX_PREDICTION") as caught:
        small_model("swin", *large)
    assert "\n" not in str(caught.value)
    for opts in (["MODEL.SIMMIM.MAX_PREDICTION", 14.0], ["MODEL.SIMMIM.TARGET_SHRINK", 4]):
        small_model("swin", *large, *opts)


def test_colours_that_differ_little_are_told_apart() -> None:
    """Distances from products of matrices would be differences of larger numbers, rounded."""
    centres = np.full((2, 3), 0.9, np.float32) + np.array([[0.0], [2e-4]], np.float32)
    target = ColorClusters(centres, Colors([0.0], [1.0]))
    image = torch.tensor([[5e-5], [1.5e-4]]).add(0.9).repeat(8, 1).expand(3, 16, 1)
    assert target(image.unsqueeze(0)).flatten().tolist() == [0, 1] * 8
