"""Pictures of other channels, depths and shapes, from files to what the network sees."""

import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data import (
    build_eval_dataset,
    build_pretrain_dataset,
    build_train_dataset,
    build_train_loader,
)
from data.labelled import csv_list
from data.listing import find_pictures
from data.masking import RandomMask
from data.pictures import Decoder, Picture, read_file, read_picture
from data.shards import Shards
from data.transforms import Normalizer, eval_transform, pretrain_transform
from tests.support.raw_files import tiff_bytes
from utils.config import get_config


def read_jpeg(path: str) -> Picture:
    return Decoder(fast=True)(read_file(path), path)


def pixels(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    largest = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    return (np.random.default_rng(0).random(shape) * largest).astype(dtype)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_all_its_bits(tmp_path: Path, suffix: str) -> None:
    values = pixels((6, 5), np.uint16)
    Image.fromarray(values).save(path := tmp_path / f"x.{suffix}")
    found = read_picture(str(path), channels=1)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), values[None].astype(np.float32) / 65535)


@pytest.mark.parametrize("size", [(6, 5), (16, 16), (216, 160)])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_four_channels_of_8_bits_keep_their_values(
    tmp_path: Path, size: tuple[int, int], suffix: str
) -> None:
    values = pixels((*size, 4), np.uint8)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}", lossless=True, exact=True)
    found = read_picture(str(tmp_path / f"x.{suffix}"), channels=4)
    expected = values.transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_colours_of_16_bits_are_not_silently_halved(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png_header(width=2, height=2, depth=16, colour_type=6))
    with pytest.raises(ValueError, match=r"x\.png.*colours have 16 bits.*save it as \.npy"):
        read_picture(str(path), channels=4)


def png_header(width: int, height: int, depth: int, colour_type: int) -> bytes:
    """The start of a PNG file, up to its (empty) pixels."""
    content = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", content), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("last", [True, False])
def test_arrays_have_their_channels_first_or_last(tmp_path: Path, dtype: Any, last: bool) -> None:
    values = pixels((13, 6, 5), dtype)
    np.save(tmp_path / "x.npy", values.transpose(1, 2, 0) if last else values)
    found = read_picture(str(tmp_path / "x.npy"), channels=13)
    largest = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), values / largest, rtol=1e-6)


def write_wrong(path: Path, kind: str) -> None:
    if kind == "pickled objects":
        np.save(path, np.array([{}, None]), allow_pickle=True)
    elif kind == "words":
        np.save(path, np.array([[["a"]]]))
    elif kind == "cut off":
        np.save(path, np.zeros((4, 8, 8)))
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "no array":
        path.write_bytes(b"nothing")
    elif kind == "lying header":
        np.save(path, np.zeros((4, 8, 8)))
        path.write_bytes(path.read_bytes().replace(b"(4, 8, 8), }  ", b"(4, 99999999)}"))
    else:
        np.save(path, np.zeros((3, 8, 8)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickled objects", "cannot be read as a picture"),
        ("words", "it holds <U1, expected real numbers"),
        ("cut off", "but the file ends before that"),
        ("lying header", r"its header tells of \(4, 99999999\) float64"),
        ("no array", "cannot be read as a picture"),
        ("other channels", r"its shape is \(3, 8, 8\), expected .* with C = 4 \(IN_CHANS\)"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, kind: str, message: str) -> None:
    write_wrong(path := tmp_path / "x.npy", kind)
    with pytest.raises(ValueError, match=message) as error:
        read_picture(str(path), channels=1 if kind == "words" else 4)
    assert "x.npy" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_picture_with_other_channels_than_wanted_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=r"x\.jpg.*it has 3 channel\(s\), the encoder takes 13"):
        read_picture(str(tmp_path / "x.jpg"), channels=13)


@pytest.mark.parametrize("read", ["folder", "tar file", "list"])
def test_arrays_and_pictures_are_not_mixed(tmp_path: Path, read: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 3)))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.npy", "b.png"):
            tar.add(tmp_path / name, name)
    (tmp_path / "x.csv").write_text("path,label\na.npy,one\nb.png,two\n")
    open_set: dict[str, Callable[[], object]] = {
        "folder": lambda: find_pictures(str(tmp_path)),
        "tar file": lambda: Shards(str(tmp_path)),
        "list": lambda: csv_list(str(tmp_path / "x.csv"), None),
    }
    with pytest.raises(
        ValueError,
        match=r"mixes 1 \.npy array.*, for example \S+\.npy, with .* in folders of their own",
    ):
        open_set[read]()


def write_arrays(root: Path, channels: int) -> None:
    for part in ("train", "val"):
        for label in ("one", "two"):
            (root / part / label).mkdir(parents=True)
            for index in range(3):
                values = pixels((20 + index, 30, channels), np.uint16)
                np.save(root / part / label / f"{index}.npy", values)


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_samples_of_any_channels_reach_both_stages(tmp_path: Path, channels: int) -> None:
    write_arrays(tmp_path, channels)
    opts = ["MODEL.TYPE", "vit", "MODEL.VIT.IN_CHANS", channels, "DATA.IMG_SIZE", [16, 24]]
    opts += ["DATA.DATA_PATH", str(tmp_path), "DATA.MASK_PATCH_SIZE", 8]
    opts += ["DATA.MEAN", [0.4] * channels, "DATA.STD", [0.2] * channels]
    dataset = build_pretrain_dataset(get_config(None, opts), patch_size=4)
    image, mask = dataset[0, 1]
    assert (image.shape, image.dtype, mask.shape) == ((channels, 16, 24), torch.float32, (4, 6))
    assert dataset.normalize(image[None]).mean().item() == pytest.approx(0.5, abs=0.3)
    plain = [*opts, "AUG.COLOR_JITTER", 0.0, "AUG.AUTO_AUGMENT", "none"]
    for build in (build_train_dataset, lambda cfg: build_eval_dataset(cfg, ["one", "two"])):
        image, label = build(get_config(None, plain))[0, 5]
        assert (image.shape, label) == ((channels, 16, 24), 1)
    with pytest.raises(ValueError, match=r"AUG\.COLOR_JITTER and AUG\.AUTO_AUGMENT are for RGB"):
        build_train_dataset(get_config(None, opts))[0, 0]


def test_a_batch_does_not_mix_8_bit_rgb_with_real_numbers(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "white").save(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(tiff_bytes(pixels((16, 16, 3), np.float32)))
    opts = ["DATA.DATA_PATH", str(tmp_path), "DATA.IMG_SIZE", 64, "DATA.BATCH_SIZE", 2]
    cfg = get_config(None, [*opts, "DATA.NUM_WORKERS", 0])
    dataset = build_pretrain_dataset(cfg, patch_size=4)
    with pytest.raises(ValueError, match="8-bit RGB and pictures of real numbers"):
        next(iter(build_train_loader(cfg, dataset, torch.device("cpu"))))


@pytest.mark.parametrize("name", ["shapes", "cifar10"])
def test_data_sets_of_rgb_pictures_have_no_other_channels(tmp_path: Path, name: str) -> None:
    opts: list[Any] = ["MODEL.SWIN.IN_CHANS", 4, "DATA.DATASET", name]
    opts += ["DATA.DATA_PATH", str(tmp_path)] if name != "shapes" else []
    opts += ["DATA.MEAN", [0.5] * 4, "DATA.STD", [0.5] * 4]
    with pytest.raises(ValueError, match=rf"IN_CHANS is 4, but the data set {name} has RGB"):
        build_pretrain_dataset(get_config(None, opts), patch_size=4)
    with pytest.raises(ValueError, match=rf"IN_CHANS is 4, but the data set {name} has RGB"):
        build_train_dataset(get_config(None, opts))


def test_a_picture_of_real_numbers_is_not_read_as_rgb(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(pixels).save(path := tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif.*its numbers are float32, with no range"):
        read_picture(str(path))
    found: Any = read_picture(str(path), 1)
    assert torch.equal(found, torch.from_numpy(pixels)[None])


def test_built_in_shapes_can_be_grey() -> None:
    opts = ["MODEL.SWIN.IN_CHANS", 1, "DATA.DATASET", "shapes", "DATA.IMG_SIZE", [32, 64]]
    opts += ["DATA.MEAN", [0.5], "DATA.STD", [0.25], "DATA.MASK_PATCH_SIZE", 16]
    image, mask = build_pretrain_dataset(get_config(None, opts), patch_size=4)[0, 0]
    assert (image.shape, mask.shape) == ((1, 32, 64), (8, 16))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5] * 3, [0.5] * 4, r"DATA\.MEAN is .*, expected one number, or one for each of the 4"),
        ([0.5] * 4, [0.5] * 3, r"DATA\.STD"),
        ([0.5] * 4, [0.5, 0.5, 0.0, 0.5], r"DATA\.STD.*expected positive"),
    ],
)
def test_mean_and_std_need_one_value_for_each_channel(
    mean: list[float], std: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Normalizer(mean, std, channels=4)


def test_one_mean_and_std_serve_all_channels() -> None:
    image = torch.rand(2, 4, 3, 3)
    expected = Normalizer([0.3] * 4, [0.2] * 4, channels=4)(image)
    assert torch.equal(Normalizer([0.3], [0.2], channels=4)(image), expected)


def write_photograph(path: Path, mode: str = "RGB", **options: Any) -> Path:
    """Something smooth with edges and noise."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).convert(mode).save(path, quality=90, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_fast_decoder_gives_the_pixels_of_pil(
    tmp_path: Path, mode: str, progressive: bool
) -> None:
    path = str(write_photograph(tmp_path / "x.jpg", mode, progressive=progressive))
    fast = read_jpeg(path)
    assert isinstance(fast, torch.Tensor)
    exact = np.asarray(read_picture(path))
    assert np.abs(fast.permute(1, 2, 0).numpy().astype(int) - exact).mean() < 0.1


def test_fast_and_exact_crops_differ_by_less_than_two_of_255(tmp_path: Path) -> None:
    write_photograph(tmp_path / "x.jpg")
    opts = ["DATA.DATA_PATH", str(tmp_path), "DATA.IMG_SIZE", 192]
    fast, exact = (
        build_pretrain_dataset(get_config(None, [*opts, "DATA.DECODER", decoder]), patch_size=4)
        for decoder in ("fast", "pil")
    )
    for epoch in range(10):
        (one, mask), (other, same_mask) = fast[epoch, 0], exact[epoch, 0]
        assert one.dtype == other.dtype == torch.uint8
        assert (one.int() - other.int()).abs().float().mean() < 0.1  # the bound is 2
        assert (one.int() - other.int()).abs().max() <= 3
        assert torch.equal(mask, same_mask)


def test_the_exact_decoder_is_pil_and_torchvision_bit_for_bit(tmp_path: Path) -> None:
    picture = read_picture(str(write_photograph(tmp_path / "x.jpg")))
    plain = transforms.Compose(
        [
            transforms.RandomResizedCrop((192, 192), scale=(0.67, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    for seed in range(10):
        images = []
        for transform in (plain, pretrain_transform(192)):
            torch.manual_seed(seed)
            images.append(transform(picture))
        assert torch.equal(*images)


@pytest.mark.parametrize("kind", ["CMYK", "no JPEG", "cut off", "too large"])
def test_what_the_fast_decoder_does_not_take_is_left_to_pil(tmp_path: Path, kind: str) -> None:
    path = write_photograph(tmp_path / "x.jpg", "CMYK" if kind == "CMYK" else "RGB")
    if kind == "no JPEG":
        write_photograph(tmp_path / "x.png").rename(path)
    if kind in ("CMYK", "no JPEG"):
        assert isinstance(read_jpeg(str(path)), Image.Image)
        return
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:5000])
    decode = Decoder(fast=True, most_pixels=1000 if kind == "too large" else 10**6)
    reason = "more than DATA.MAX_PIXELS = 1000: raise" if kind == "too large" else ""
    with pytest.raises(ValueError, match=rf"x\.jpg cannot be read as a picture: .*{reason}"):
        decode(path.read_bytes(), str(path))


def test_crops_follow_the_shape_of_the_image() -> None:
    """A circle stays one, to a third, in images of any shape."""
    torch.manual_seed(0)
    rows, columns = np.mgrid[:200, :400]
    circle = ((rows - 100) ** 2 + (columns - 200) ** 2 < 60**2).astype(np.uint8) * 255
    picture = Image.fromarray(circle).convert("RGB")
    for size in ((64, 128), (128, 64)):
        for _ in range(20):
            inside = pretrain_transform(size)(picture)[0] > 128
            if inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any():
                continue  # cut off
            height, width = inside.any(1).sum().item(), inside.any(0).sum().item()
            assert 0.7 < height / width < 1.4
        inside = eval_transform(size, "bicubic", crop=True)(picture)[0] > 128
        height, width = inside.any(1).sum().item(), inside.any(0).sum().item()
        assert height == pytest.approx(width, abs=2) or min(size) in (height, width)


def test_masks_cover_images_of_any_shape() -> None:
    mask = RandomMask((64, 96), mask_patch_size=32, patch_size=4, mask_ratio=0.6)()
    assert mask.shape == (16, 24)
    assert mask[::8, ::8].sum() == 4  # ceil(0.6 * 6) of the 2 x 3 cells
    assert torch.equal(mask, mask[::8, ::8].repeat_interleave(8, 0).repeat_interleave(8, 1))
    with pytest.raises(ValueError, match=r"DATA\.IMG_SIZE is 80"):
        RandomMask((64, 80), 32, 4, 0.6)
