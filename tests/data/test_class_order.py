"""Labels follow the names of the classifier's classes, in whatever order the data has them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import main_finetune
from data import build_eval_dataset
from tests.support.picture_files import jpeg, write_tar
from tests.support.small_runs import run_folder, run_here, write_finetune_config
from utils.config import get_config

BY_VALUE = [str(index) for index in range(12)]
BY_TEXT = sorted(BY_VALUE)


def draw_numbered(root: Path) -> Path:
    """train/ and val/ of twelve classes 0 to 11, as folders and as lists; class k has k + 1."""
    for part in ("train", "val"):
        rows = []
        for label in range(12):
            for number in range(label + 1):
                path = root / part / str(label) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng([label, number]).integers(0, 256, (40, 40, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                rows.append(f"{path.relative_to(root)},{label}\n")
        (root / f"{part}.csv").write_text("path,label\n" + "".join(rows))
    return root


def labels_by_name(data: str, root: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """What each validation picture is called, and its label."""
    cfg = get_config(None, ["DATA.DATASET", data, "DATA.DATA_PATH", str(root), "DATA.IMG_SIZE", 32])
    dataset = build_eval_dataset(cfg, classes)
    assert dataset.classes == list(classes)
    return [(dataset.pictures.name(index), dataset[0, index][1]) for index in range(len(dataset))]


@pytest.mark.parametrize("data", ["imagenet", "csv"])
@pytest.mark.parametrize("classes", [BY_VALUE, BY_TEXT, BY_VALUE[::-1]])
def test_pictures_of_numbered_classes_get_the_labels_of_the_classifier(
    tmp_path: Path, data: str, classes: list[str]
) -> None:
    found = labels_by_name(data, draw_numbered(tmp_path), classes)
    assert len(found) == 78
    for name, label in found:
        assert classes[label] == Path(name).parent.name


def test_a_classifier_of_numbered_classes_is_as_good_on_folders_as_on_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on a list, whose numbers are sorted by value; folders are sorted as text."""
    root, cfg = draw_numbered(tmp_path / "data"), write_finetune_config(tmp_path)
    shared: list[Any] = ["--output", tmp_path, "--data-path", root]
    opts = ["--opts", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "DATA.DATASET"]
    assert run_here(monkeypatch, cfg, *shared, *opts, "csv", program=main_finetune) == 0
    best = run_folder(tmp_path, name="finetune") / "best.pth"
    assert torch.load(best, weights_only=True)["classes"] == BY_VALUE
    capsys.readouterr()
    reports = []
    for data in ("csv", "imagenet"):
        arguments = [*shared, "--eval", "--resume", best, "--tag", data, *opts, data]
        assert run_here(monkeypatch, cfg, *arguments, program=main_finetune) == 0
        reports.append(json.loads(best.with_name(f"eval__best__{data}.json").read_text()))
        moved = "10 class(es) of the validation pictures have another index"
        assert (moved in capsys.readouterr().out) == (data == "imagenet")
    assert reports[1]["loss"] == pytest.approx(reports[0].pop("loss"), rel=1e-5)
    assert {**reports[1], "loss": 0} == {**reports[0], "loss": 0}
    assert [entry["images"] for entry in reports[0]["per_class"]] == list(range(1, 13))


def test_shards_in_another_order_of_classes_need_the_names_of_their_classes(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for label in range(12):
        write_tar(tmp_path / f"val/{label:02}.tar", {"x.jpg": jpeg(40), "x.cls": b"%d" % label})
    assert [label for _, label in labels_by_name("shards", tmp_path, BY_VALUE)] == list(range(12))
    with pytest.raises(ValueError, match=r"12 classes instead of 12 [(]in another order"):
        labels_by_name("shards", tmp_path, BY_TEXT)  # is label 2 the folder 2 or 10?
    (tmp_path / "val/classes.txt").write_text("".join(f"{name}\n" for name in BY_TEXT))
    found = [label for _, label in labels_by_name("shards", tmp_path, BY_VALUE)]
    assert [BY_VALUE[label] for label in found] == BY_TEXT


def test_a_report_lies_beside_its_checkpoint_and_else_in_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two checkpoints of one name have two reports, also where none can be written beside them."""
    cfg = write_finetune_config(tmp_path)
    train = ["--output", tmp_path, "--opts", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    assert run_here(monkeypatch, cfg, *train, program=main_finetune) == 0
    weights = (run_folder(tmp_path, name="finetune") / "best.pth").read_bytes()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "best.pth").write_bytes(weights)
        arguments = ["--eval", "--output", tmp_path / "out", "--resume", folder / "best.pth"]
        for place in (folder, run_folder(tmp_path / "out", name="finetune")):
            capsys.readouterr()
            assert run_here(monkeypatch, cfg, *arguments, program=main_finetune) == 0
            name = (
                "eval__best__tiny.json"
                if place == folder
                else f"eval__{folder.name}__best__tiny.json"
            )
            report = json.loads((place / name).read_text())
            assert report["checkpoint"] == str(folder / "best.pth")
            said = capsys.readouterr().out
            assert f"wrote {place / name}" in said
            assert (f"({folder} cannot be written: Is a directory)" in said) == (place != folder)
            if place == folder:
                os.remove(folder / name)
                (folder / name).mkdir()  # as if the folder were not to be written to
