"""Labelled pictures: class folders, CSV lists, ground-truth lists, and what is wrong with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data import build_eval_dataset, build_train_dataset
from data.labelled import class_folders, csv_list, first_of_each_class, listed_pictures
from utils.config import get_config

GREYS = {"ant": 10, "bee": 100, "cat": 200}


def draw(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)


def draw_folders(root: Path, per_class: int = 2) -> Path:
    for name, grey in GREYS.items():
        for number in range(per_class):
            draw(root / name / f"sub{number}" / f"{number}.png", grey)
    return root


def greys(pictures: Any) -> list[tuple[int, int]]:
    return [(np.asarray(picture)[0, 0, 0], label) for picture, label in pictures]


def test_class_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    pictures = class_folders(str(draw_folders(tmp_path)))
    assert pictures.classes == ["ant", "bee", "cat"]
    assert greys(pictures) == [(10, 0), (10, 0), (100, 1), (100, 1), (200, 2), (200, 2)]


def test_folders_without_pictures_are_named(tmp_path: Path) -> None:
    draw_folders(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="class folders without pictures: dog"):
        class_folders(str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        class_folders(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="holds no class folders"):
        class_folders(str(tmp_path / "dog"))


def test_a_csv_list_gives_paths_and_labels(tmp_path: Path) -> None:
    draw_folders(tmp_path)
    path = tmp_path / "train.csv"
    path.write_text("label,path\ncat,cat/sub0/0.png\nant,ant/sub1/1.png\n")
    pictures = csv_list(str(path), None)
    assert pictures.classes == ["ant", "cat"]
    assert greys(pictures) == [(200, 1), (10, 0)]
    assert greys(csv_list(str(path), ["ant", "bee", "cat"])) == [(200, 2), (10, 0)]


@pytest.fixture
def listable(tmp_path: Path) -> Path:
    """A folder with the files that the lists below name."""
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, 10)
    return tmp_path


def test_numbers_are_classes_by_value_or_indices_of_named_classes(listable: Path) -> None:
    path = listable / "train.csv"
    path.write_text("path,label\na.png,10\nb.png,9\n")
    assert csv_list(str(path), None).classes == ["9", "10"]
    assert csv_list(str(path), None).labels.tolist() == [1, 0]
    names = [f"class{index}" for index in range(11)]
    assert csv_list(str(path), names).labels.tolist() == [10, 9]


def test_labels_of_one_value_are_classes_in_the_same_order_in_every_process(listable: Path) -> None:
    """A set's order differs between processes."""
    path, labels = listable / "train.csv", ["1", "01", "001", "2", "0001"]
    rows = [f"{'./' * number}../{listable.name}/a.png,{x}" for number, x in enumerate(labels)]
    path.write_text("\n".join(["path,label", *rows]))
    assert csv_list(str(path), None).classes == ["0001", "001", "01", "1", "2"]
    path.write_text(f"path,label\na.png,1\nb.png,{'9' * 5000}\n")
    assert csv_list(str(path), None).classes == ["1", "9" * 5000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the columns"),
        ("path,label\n", "has no rows"),
        ("a.png,cat\nb.png,dog\n", "not the columns path,label in its first line: 'a.png,cat'"),
        ("path,label\na.png,cat\nb.png,dog\n", r"line 3: label 'dog' is none of the 2 classes"),
        ("path,label\na.png,2\n", r"line 2: label '2' is none of the 2 classes \(ant, cat\)"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_wrong_lists_say_where(listable: Path, text: str | bytes, message: str) -> None:
    path = listable / "x.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        csv_list(str(path), ["ant", "cat"])


def test_a_label_that_names_two_classes_is_refused(listable: Path) -> None:
    path = listable / "x.csv"
    path.write_text("path,label\na.png,bee\nb.png,crane\n")
    with pytest.raises(ValueError, match=r"x\.csv, line 3: two classes are called 'crane'"):
        csv_list(str(path), ["crane", "bee", "crane"])


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv cannot be read: No such file"):
        csv_list(str(tmp_path / "none.csv"), None)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Pictures without class folders: grey 10, 100, 200 in sorted order."""
    for number, grey in enumerate(GREYS.values()):
        draw(tmp_path / "val" / f"{number}.png", grey)
    return tmp_path


def listed(flat: Path, text: str, classes: Sequence[str] = tuple(GREYS)) -> list[tuple[int, int]]:
    (flat / "truth.txt").write_text(text)
    return greys(listed_pictures(str(flat / "val"), str(flat / "truth.txt"), classes))


def test_a_list_gives_labels_by_name_or_in_sorted_order(flat: Path) -> None:
    expected = [(10, 2), (100, 0), (200, 1)]
    assert listed(flat, "2\n0\n1\n") == expected
    assert listed(flat, "cat\nant\nbee\n") == expected
    assert sorted(listed(flat, "2.png 1\n0.png 2\n1.png ant\n\n")) == expected


def test_the_development_kits_own_order_is_undone(flat: Path) -> None:
    """ILSVRC2012_ID counts from 1 in an order of its own; a synset with children is no class."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    rows = [(1, "n03", 0), (2, "n01", 0), (3, "n02", 0), (4, "n00", 3)]
    savemat(flat / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    numbers, text = ["0", "1", "2"], "1\n2\n3\n"
    assert listed(flat, text, numbers) == [(10, 2), (100, 0), (200, 1)]
    with pytest.raises(ValueError, match="line 3: label '4' is none of the 3 classes"):
        listed(flat, "1\n2\n4\n", numbers)
    # Classes in another order are found by name.
    assert listed(flat, text, ["n03", "n01", "n02"]) == [(10, 0), (100, 1), (200, 2)]
    for others in (["n01", "n02"], ["ant", "cat", "tench"], ["0", "1"]):
        with pytest.raises(ValueError, match=r"label 'n0\d' is none of the \d classes"):
            listed(flat, text, others)
    (flat / "meta.mat").write_text("no table")
    with pytest.raises(ValueError, match=r"meta\.mat is not the development kit's table"):
        listed(flat, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", "lists 2 labels, .*val holds 3 pictures"),
        ("0.png 0\n1.png 0\n3.png 0\n", r"not in both: 2\.png, 3\.png"),
        ("0.png 0\n0.png 0\n1.png 0\n2.png 0\n", r"lines 1 and 2 are both of 0\.png"),
        ("0.png 0\n\n./0.png 1\n1.png 0\n", r"lines 1 and 3 are both of \./0\.png"),
        ("0\n1.png 0\n2\n", "line 1 is a label alone, line 2 is a name and a label: '1.png 0'"),
        ("0.png 0\n1\n", "line 1 is a name and a label, line 2 is a label alone: '1'"),
        ("0.png 0\n1.png\u20281 1\n2.png 0\n", r"not in both: 1\.png, 1\.png 1"),
        ("1\n2\n3\n", "line 3: label '3' is none of the 3 classes"),
        ("1\n2\n-1\n", "line 3: label '-1' is none of the 3 classes"),
    ],
)
def test_lists_that_do_not_match_the_pictures_are_refused(
    flat: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        listed(flat, text)


def test_the_first_pictures_of_every_class_are_a_small_training_set(tmp_path: Path) -> None:
    assert first_of_each_class([0, 1, 0, 1, 1, 0], 2, ["a", "b"]) == [0, 2, 1, 3]
    with pytest.raises(ValueError, match="IMAGES_PER_CLASS is 4, but class a has 3"):
        first_of_each_class([0, 1, 0, 1, 1, 0], 4, ["a", "b"])
    draw_folders(tmp_path / "train", per_class=3)
    cfg = get_config(None, ["DATA.DATA_PATH", str(tmp_path), "DATA.IMAGES_PER_CLASS", 2])
    assert len(build_train_dataset(cfg)) == 6


def test_validation_classes_are_the_training_classes(tmp_path: Path) -> None:
    draw_folders(tmp_path / "train")
    draw_folders(tmp_path / "val")
    cfg = get_config(None, ["DATA.DATA_PATH", str(tmp_path)])
    classes = build_train_dataset(cfg).classes
    assert build_eval_dataset(cfg, classes).classes == classes
    numbers = ["0", "1", "2"]  # of a head whose classes nobody named
    assert build_eval_dataset(cfg, numbers, named=False).classes == classes
    with pytest.raises(ValueError, match=r"unknown: ant, bee, cat; missing: 0, 1, 2"):
        build_eval_dataset(cfg, numbers)
    with pytest.raises(ValueError, match="3 classes instead of 4"):
        build_eval_dataset(cfg, ["0", "1", "2", "3"])
    (tmp_path / "val/bee").rename(tmp_path / "val/wasp")
    with pytest.raises(ValueError, match=r"\(unknown: wasp; missing: bee\)"):
        build_eval_dataset(cfg, classes)


@pytest.mark.parametrize("name", ["csv", "shapes", "imagenet"])
def test_every_labelled_set_has_training_and_validation_parts(tmp_path: Path, name: str) -> None:
    for part in ("train", "val"):
        draw_folders(tmp_path / part)
        rows = [f"{part}/{grey}/sub0/0.png,{grey}" for grey in GREYS]
        (tmp_path / f"{part}.csv").write_text("\n".join(["path,label", *rows]))
    opts: list[Any] = ["DATA.DATASET", name]
    opts += ["DATA.DATA_PATH", str(tmp_path)] if name != "shapes" else []
    opts += ["DATA.IMG_SIZE", 32, "DATA.NUM_SHAPES", 7, "DATA.NUM_VAL_SHAPES", 5]
    cfg = get_config(None, opts)
    dataset = build_train_dataset(cfg)
    val_dataset = build_eval_dataset(cfg, dataset.classes)
    assert (len(dataset), len(val_dataset)) == {"csv": (3, 3), "shapes": (7, 5)}.get(name, (6, 6))
    for labelled in (dataset, val_dataset):
        image, label = labelled[0, 2]
        assert image.shape == (3, 32, 32)
        assert 0 <= label < len(dataset.classes)
