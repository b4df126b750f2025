"""Pictures in tar files: the same samples as from a folder, and what is wrong is named."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import build_eval_dataset, build_pretrain_dataset, build_train_dataset, shards
from data.shards import INDEX, Shards, entries_of, write_index
from tests.support.picture_files import jpeg, write_classes, write_tar
from tests.support.small_runs import call, checkpoint_of, equal, run_here, write_config
from tools import shard
from utils.config import get_config


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds `pictures` and, of the same pictures, `shards`; train and val."""
    monkeypatch.setattr(shard, "_MIB", 4000)  # bytes, so that there are several tar files
    for part in ("train", "val"):
        source = write_classes(tmp_path / "pictures" / part)
        assert call(monkeypatch, shard, source, tmp_path / "shards" / part, "--size", 1) == 0
    assert len(list((tmp_path / "shards/train").glob("*.tar"))) > 2
    return tmp_path


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_give_the_samples_of_the_folder(packed: Path, indexed: bool) -> None:
    if not indexed:
        for path in (packed / "shards/train").glob("*.index"):
            path.unlink()
    folder, tars = (
        build_pretrain_dataset(
            get_config(None, ["DATA.DATASET", name, "DATA.DATA_PATH", str(packed / part)]),
            patch_size=4,
        )
        for name, part in (("imagenet", "pictures/train"), ("shards", "shards/train"))
    )
    assert len(folder) == len(tars) == 6
    for epoch in range(2):
        for index in range(6):
            for one, other in zip(folder[epoch, index], tars[epoch, index], strict=True):
                assert torch.equal(one, other)


@pytest.mark.slow
def test_a_run_on_shards_equals_the_run_on_the_folder_also_when_it_is_resumed(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = write_config(packed)
    epochs = {"folder": [2], "shards": [1, 2]}
    for tag, name, part in (
        ("folder", "imagenet", "pictures/train"),
        ("shards", "shards", "shards/train"),
    ):
        for number in epochs[tag]:  # the second starts from the first one's checkpoint
            arguments = ["--output", packed, "--tag", tag, "--data-path", packed / part]
            arguments += ["--batch-size", 2, "--opts", "DATA.DATASET", name, "TRAIN.EPOCHS", number]
            arguments += ["DATA.NUM_WORKERS", 2, "TRAIN.WARMUP_EPOCHS", 0]
            arguments += ["TRAIN.LR_SCHEDULER.NAME", "step"]
            assert run_here(monkeypatch, cfg, *arguments) == 0
    one, other = (checkpoint_of(packed, 1, tag) for tag in epochs)
    assert equal(one["model"], other["model"])
    assert equal(one["optimizer"], other["optimizer"])


def test_class_folders_become_labels(packed: Path) -> None:
    opts = ["AUG.AUTO_AUGMENT", "none", "DATA.IMG_SIZE", 32]
    found = []
    for name, part in (("imagenet", "pictures"), ("shards", "shards")):
        path = str(packed / part)
        cfg = get_config(None, [*opts, "DATA.DATASET", name, "DATA.DATA_PATH", path])
        train = build_train_dataset(cfg)
        val = build_eval_dataset(cfg, train.classes)
        assert train.classes == val.classes == ["n01", "n02"]
        found.append([*(train[1, index] for index in range(6)), *(val[0, i] for i in range(6))])
    for (image, label), (same_image, same_label) in zip(*found, strict=True):
        assert torch.equal(image, same_image)
        assert label == same_label


def test_tar_files_of_other_programs_are_read(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((8, 8, 3), np.uint8))
    members = {
        "a/x.jpg": jpeg(),
        "a/x.cls": b"1\n",
        "a/x.json": b"{}",
        "a/y.seg.png": b"",
        "b/x.JPG": jpeg(16),
        "b/x.cls": b"0",
    }
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", {"z.cls": b"2", "z.npy": array.getvalue()})
    found = Shards(str(tmp_path))
    assert [int(label) for label in found.labels] == [1, -1, 0, 2]
    pictures: list[Any] = [found[index][0] for index in (0, 2, 3)]
    assert [tuple(picture.shape[1:]) for picture in pictures] == [(8, 8), (16, 16), (8, 8)]
    with pytest.raises(ValueError, match=r"0\.tar: a/y\.seg\.png cannot be read.*it is empty"):
        found[1]
    with pytest.raises(ValueError, match=r"picture a/y\.seg\.png has no label"):
        _ = found.classes


def test_classes_without_names_are_named_by_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"2"})
    assert Shards(str(tmp_path)).classes == ["0", "1", "2"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"classes\.txt names 2 classes, but a label is 2"):
        _ = Shards(str(tmp_path)).classes
    (tmp_path / "classes.txt").write_text("crane\nmaillot\ncrane\n")
    with pytest.raises(ValueError, match=r"classes\.txt, lines 1 and 3: two classes 'crane': give"):
        _ = Shards(str(tmp_path)).classes


def test_a_label_beyond_the_largest_number_of_classes_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"2147483647"})
    with pytest.raises(ValueError, match="a label is 2147483647, beyond 10000000 classes"):
        _ = Shards(str(tmp_path)).classes


def test_few_files_are_open_at_a_time_and_none_moves_to_another_process(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    found = Shards(str(packed / "shards/train"))
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for index in [*range(6), *range(6)]:
        assert found[index][1] == index // 3
    if before:
        assert len(os.listdir("/proc/self/fd")) == before + 2
    copy = pickle.loads(pickle.dumps(found))
    assert not copy.files
    assert copy[5][1] == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", r"holds no \.tar file"),
        ("empty", r"0\.tar holds no picture"),
        ("words", r"0\.tar cannot be read as an uncompressed tar file"),
        ("compressed", r"0\.tar cannot be read as an uncompressed tar file"),
        ("cut off", r"0\.tar cannot be read as an uncompressed tar file: unexpected end of data"),
        ("label", r"x\.cls holds b'cat', expected the index of a class"),
        ("huge label", r"x\.cls holds b'99999999999', expected the index of a class"),
        ("index", r"0\.tar\.index cannot be read: write it again"),
        ("beyond", r"0\.tar is cut off: pictures lie beyond its \d+ bytes"),
        ("negative", r"0\.tar is cut off"),
        ("too large", r"0\.tar holds a picture of more than 2 GiB"),
    ],
)
def test_wrong_shards_are_named(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "0.tar"
    members = {"x.jpg": jpeg()}
    if kind in ("label", "huge label"):
        members["x.cls"] = b"cat" if kind == "label" else b"99999999999"
    if kind != "none":
        write_tar(path, {} if kind == "empty" else members, "w:gz" if kind == "compressed" else "w")
    if kind == "words":
        path.write_text("nothing")
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "index":
        Path(f"{path}.index").write_text("nothing")
    elif kind in ("beyond", "negative", "too large"):
        if kind == "too large":
            os.truncate(path, 2**33)  # no bytes are written
        place = {"beyond": (512, 10**6), "negative": (-1, 4), "too large": (0, 2**32)}[kind]
        write_index(str(path), np.array([(*place, -1, b"x.jpg")], dtype=INDEX))
    with pytest.raises(ValueError, match=message) as error:
        Shards(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["other tar", "other array", "archive"])
def test_an_index_that_does_not_fit_is_not_used(tmp_path: Path, kind: str) -> None:
    path = write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"4"})
    expected = entries_of(str(path))
    index = Path(f"{path}.index")
    if kind == "other tar":
        other = write_tar(tmp_path / "other", {f"{i}.jpg": jpeg() for i in range(30)})
        write_index(str(other), entries_of(str(other)))
        Path(f"{other}.index").rename(index)
    else:
        with open(index, "wb") as file:
            (np.save if kind == "other array" else np.savez)(file, np.zeros(3))
    assert entries_of(str(path)).tolist() == expected.tolist()


def test_an_index_gives_the_entries_of_the_headers(packed: Path) -> None:
    for path in (packed / "shards/train").glob("*.tar"):
        indexed = entries_of(str(path)).tolist()
        Path(f"{path}.index").unlink()
        assert entries_of(str(path)).tolist() == indexed
