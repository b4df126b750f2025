"""Pictures of every kind become RGB; folders of every shape are found; shapes come from indices."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from data.pictures import Decoder
from data.shapes import CLASSES, draw_shape
from data.sources import Cifar10, ImageFolder, Shapes


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def read_one(folder: Path) -> np.ndarray:
    picture, _ = ImageFolder(str(folder), Decoder())[0]
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_folders_with_classes_flat_or_nested_are_read_in_sorted_order(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), "red")
    for name in ("b.png", "n01/x.jpg", "a/deep/er/y.webp", "n01/a.JPEG"):
        save(tmp_path / name, image)
    (tmp_path / "notes.txt").write_text("no picture")
    names = [name.decode() for name in ImageFolder(str(tmp_path)).names]
    assert names == ["a/deep/er/y.webp", "b.png", "n01/a.JPEG", "n01/x.jpg"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_every_format_of_pictures_is_read(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"x.{suffix}", Image.new("RGB", (16, 16), (200, 100, 50)))
    assert np.abs(read_one(tmp_path).mean((0, 1)) - (200, 100, 50)).max() < 4


def test_a_grey_picture_becomes_three_equal_channels(tmp_path: Path) -> None:
    save(tmp_path / "x.png", Image.new("L", (4, 4), 77))
    assert (read_one(tmp_path) == 77).all()


def test_values_of_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    save(tmp_path / "x.png", Image.fromarray(ramp))
    assert (read_one(tmp_path)[..., 0].ravel() == ramp.ravel() // 256).all()


def test_colours_are_looked_up_in_the_palette(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    save(tmp_path / "x.png", image)
    assert (read_one(tmp_path) == (10, 200, 30)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_become_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (0, 0, 4, 2))
    if mode == "PA":
        image.save(tmp_path / "x.gif")
        image = Image.open(tmp_path / "x.gif")
        image.save(tmp_path / "x.png")
    else:
        save(tmp_path / "x.png", image.convert(mode))
    pixels = read_one(tmp_path)
    assert (pixels[:2] == 90).all()
    assert (pixels[2:] == 255).all()


def test_cmyk_photographs_become_rgb(tmp_path: Path) -> None:
    save(tmp_path / "x.jpg", Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK"))
    red, green, blue = read_one(tmp_path).mean((0, 1))
    assert red > 180
    assert max(green, blue) < 60


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        ImageFolder(str(tmp_path))[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "is empty"), ("missing", "is not a folder"), (".", "holds no picture.*jpeg")],
)
def test_paths_without_pictures_say_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        ImageFolder(path)


def test_shapes_depend_on_index_and_size_alone() -> None:
    first, label = draw_shape(13, 48)
    assert label == 13 % len(CLASSES)
    assert first.size == (48, 48)
    assert first.tobytes() == draw_shape(13, 48)[0].tobytes()
    assert first.tobytes() != draw_shape(23, 48)[0].tobytes()
    assert first.tobytes() != draw_shape(13, 48, stream=1)[0].tobytes()


def test_training_and_held_out_shapes_differ() -> None:
    training, held_out = Shapes(20, 32, train=True), Shapes(20, 32, train=False)
    assert len(training) == 20
    assert training[3][0] != held_out[3][0]
    assert sorted(training[index][1] for index in range(10)) == list(range(10))


def test_cifar10_is_read_from_a_local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in CIFAR-10's format, with checksums of their own."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    batch = pickle.dumps({"data": data, "labels": [3, 8]})
    meta = pickle.dumps({"label_names": [str(number) for number in range(10)]})
    sums = [hashlib.md5(part).hexdigest() for part in (batch, meta)]
    (folder / "data_batch_1").write_bytes(batch)
    (folder / "batches.meta").write_bytes(meta)
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums[0]]])
    monkeypatch.setattr(kind, "test_list", [])
    names = {"filename": "batches.meta", "key": "label_names", "md5": sums[1]}
    monkeypatch.setattr(kind, "meta", names)
    pictures = Cifar10(str(tmp_path), train=True)
    assert len(pictures) == 2
    picture, label = pictures[1]
    assert isinstance(picture, Image.Image)
    assert (picture.size, picture.mode, label) == ((32, 32), "RGB", 8)


def test_cifar10_that_cannot_be_downloaded_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="DATA_PATH is empty"):
        Cifar10("", train=True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(ValueError, match="looked for cifar-10-batches-py"):
        Cifar10(str(tmp_path), train=True)


def test_a_digest_tells_names_and_their_order_apart_but_not_where_they_lie(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4))
    for folder, names in {"a": ("x", "yz"), "b": ("x", "yz"), "c": ("xy", "z")}.items():
        for name in names:
            save(tmp_path / folder / f"{name}.png", image)
    a, b, c = (ImageFolder(str(tmp_path / folder)).digest for folder in "abc")
    assert a == b != c
    assert Shapes(10, 32, train=True).digest != Shapes(10, 32, train=False).digest


def test_names_with_line_breaks_are_read_and_take_one_line_in_messages(tmp_path: Path) -> None:
    save(tmp_path / "a\nb.png", Image.new("RGB", (4, 4), "red"))
    (tmp_path / "c\rd.png").write_bytes(b"no picture")
    pictures = ImageFolder(str(tmp_path))
    assert pictures.name(0).endswith("a\\nb.png")
    assert isinstance(pictures[0][0], Image.Image)
    with pytest.raises(ValueError, match=r"c\\rd\.png cannot be read as a picture"):
        pictures[1]
