"""The tools as a user runs them, on a small model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.drawing import picture_grid, spread
from models import build_classifier, build_pretrain_model
from tests.support.golden_cases import GOLDEN, options, read_golden
from tests.support.small_runs import (
    call,
    pictures_in,
    run_folder,
    run_here,
    write_config,
    write_finetune_config,
)
from tools import augmentation, curves, reconstruct
from utils.config import get_config


def test_a_checkpoint_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = write_config(tmp_path)
    assert run_here(monkeypatch, cfg, "--output", tmp_path) == 0
    capsys.readouterr()
    checkpoint, picture = run_folder(tmp_path) / "ckpt_epoch_1.pth", tmp_path / "out.png"
    arguments = ["--cfg", cfg, "--resume", checkpoint, "--picture", picture, "--rows", 3]
    assert call(monkeypatch, reconstruct, *arguments) == 0
    said = capsys.readouterr().out
    assert "original | masked | reconstruction, 3 rows" in said
    assert "prepared otherwise" not in said
    other = ["--opts", "DATA.STD", "[0.5]", "DATA.INTERPOLATION", "nearest"]
    assert call(monkeypatch, reconstruct, *arguments, *other) == 0
    line = "ckpt_epoch_1.pth was trained with pictures prepared otherwise: DATA.STD [0.229, "
    said = capsys.readouterr().out
    assert line in said
    assert "INTERPOLATION" not in said  # which pre-training does not use
    image = Image.open(picture)
    assert image.width > 3 * 100
    assert image.height > 3 * 100
    (tmp_path / "own").mkdir()
    Image.effect_noise((40, 40), 80).convert("RGB").save(tmp_path / "own/good.png")
    (tmp_path / "own/empty.jpg").touch()
    assert call(monkeypatch, reconstruct, *arguments, *pictures_in(tmp_path / "own")) == 0
    said = capsys.readouterr().out
    assert "own/empty.jpg cannot be read; another picture takes its place" in said
    assert "2 rows" in said


def test_masked_and_reconstructed_columns_keep_visible_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = write_config(tmp_path)
    assert run_here(monkeypatch, cfg, "--output", tmp_path, "--opts", "DATA.MASK_RATIO", 0.01) == 0
    image = Image.open(run_folder(tmp_path) / "reconstruction.png").convert("RGB")
    cell = (image.width - 6) // 3
    boxes = [(6 + column * cell, 32, column * cell + cell, 26 + cell) for column in (0, 2)]
    original, reconstruction = (np.asarray(image.crop(box)) for box in boxes)
    equal = (original == reconstruction).all(axis=2).mean()
    assert 0.9 < equal < 1  # one of 16 cells is hidden


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --resume CKPT"),
        (["--resume", "/nowhere.pth"], "does not exist"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    common = ["--cfg", write_config(tmp_path), "--output", tmp_path]
    assert call(monkeypatch, reconstruct, *common, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_classifier_or_its_recipe_is_refused_by_the_reconstruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, recipe = write_config(tmp_path), write_finetune_config(tmp_path)
    model = build_classifier(get_config(recipe), 10)
    torch.save({"model": model.state_dict()}, path := tmp_path / "classifier.pth")
    assert call(monkeypatch, reconstruct, "--cfg", cfg, "--resume", path) == 2
    assert "classifier.pth is a classifier, which reconstructs nothing" in capsys.readouterr().err
    assert call(monkeypatch, reconstruct, "--cfg", recipe, "--resume", path) == 2
    assert "is for fine-tuning, expected a recipe of pre-training" in capsys.readouterr().err


def test_a_published_checkpoint_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_golden("checkpoints/expected.json")["swin"]["pretrain_config"]
    (tmp_path / "x.yaml").write_text("DATA: {DATASET: shapes}\nDEVICE: cpu\n")
    arguments = ["--cfg", tmp_path / "x.yaml", "--picture", tmp_path / "out.png", "--rows", 1]
    arguments += ["--resume", GOLDEN / "checkpoints/swin_pretrain.pth", "--opts", *options(config)]
    assert call(monkeypatch, reconstruct, *arguments) == 0
    assert Image.open(tmp_path / "out.png").width > 3 * 100


def test_skipped_updates_are_left_out_of_curves(tmp_path: Path) -> None:
    lines = [{"update": update, "loss": loss} for update, loss in enumerate((1.0, None, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert curves.read_run(str(tmp_path), "loss")[1] == [(0, 1.0), (2, 0.5)]


def test_curves_of_several_runs_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = [{"update": update, "loss": 1.0} for update in range(3)]
        lines += [{"update": update, "val_acc1": 10.0 * update} for update in range(3)]
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    picture = tmp_path / "out.png"
    runs = [f"a={tmp_path / 'one'}", f"a={tmp_path / 'two'}", tmp_path / "two"]
    assert call(monkeypatch, curves, *runs, "--picture", picture) == 0
    assert "val_acc1 of 3 run(s)" in capsys.readouterr().out
    assert len(np.unique(np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3), axis=0)) > 9
    for run, figure, message in (
        (tmp_path, "loss", "metrics.jsonl cannot be read"),
        (tmp_path / "one", "lr", "holds no lr"),
    ):
        assert call(monkeypatch, curves, run, "--figure", figure) == 2
        assert message in capsys.readouterr().err
    assert call(monkeypatch, curves, *runs, "--picture", tmp_path / "none/x.png") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_folder_with_an_equals_sign_is_a_run_with_and_without_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lr=0.1" / "tiny"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"update": 0, "loss": 1.5}\n')
    points = [(0, 1.5)]
    assert curves.read_run(str(folder), "loss") == ("tiny", points)
    assert curves.read_run(f"a={folder}", "loss") == ("a", points)
    assert curves.read_run(f"lr=1={folder}", "loss") == ("lr=1", points)
    assert call(monkeypatch, curves, tmp_path / "lr=0.1" / "tony") == 2
    assert "tony' is no folder of a run, nor LABEL=FOLDER" in capsys.readouterr().err


def test_curves_ignore_a_torn_last_line_and_name_any_other_broken_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, line = tmp_path / "metrics.jsonl", '{"update": 1, "loss": 2.0}\n'
    for torn in ('{"update": 2, "lo', "[" * 10**5, "{}", b"\xff".decode("latin1")):
        path.write_text(line + torn)
        assert curves.read_run(str(tmp_path), "loss")[1] == [(1, 2.0)]
    for broken in (
        *('{"update": 2, "lo', "[" * 10**5, '{"loss": 1}', '{"update": 2, "loss": "x"}'),
        *('{"update": [], "loss": 1}', f'{{"update": {"9" * 400}, "loss": 1}}'),
    ):
        path.write_text(f"{line}{broken}\n{line}")
        assert call(monkeypatch, curves, tmp_path, "--figure", "loss") == 2
        said = capsys.readouterr().err
        assert "metrics.jsonl, line 2 is no record: " in said
        assert len(said) < 300


def test_curves_say_which_file_they_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"update": 0, "loss": 1.5}\n')
    for name, written in (("curve", "curve.png"), ("curve.svg", "curve.svg")):
        arguments = [tmp_path, "--figure", "loss", "--picture", tmp_path / name]
        assert call(monkeypatch, curves, *arguments) == 0
        assert f"wrote {tmp_path / written} (" in capsys.readouterr().out
        assert (tmp_path / written).exists()
    assert not (tmp_path / "curve").exists()


def test_drawn_samples_are_spread_over_a_data_set_and_none_comes_twice() -> None:
    for length in range(1, 200):
        for number in range(1, 20):
            chosen = spread(number, length)
            assert len(set(chosen)) == len(chosen) == min(number, length)
            assert set(chosen) <= set(range(length))
    for length in (1000, 7000, 10000):
        chosen = spread(8, length)
        assert len({index % 10 for index in chosen}) >= 5  # classes that take turns
        assert max(chosen) - min(chosen) > length / 2


def test_a_small_folder_is_drawn_without_repeating_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        for stage in ("all", f"sorted/train/{index % 2}"):
            path = tmp_path / stage / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (80 * index, 0, 0)).save(path)
    model = build_pretrain_model(get_config(write_config(tmp_path)))
    torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
    picture = tmp_path / "out.png"
    arguments = ["--cfg", write_config(tmp_path), "--resume", tmp_path / "x.pth"]
    arguments += ["--picture", picture, *pictures_in(tmp_path / "all")]
    assert call(monkeypatch, reconstruct, *arguments) == 0
    assert ", 3 rows) from" in capsys.readouterr().out
    assert Image.open(picture).height < 4 * 134
    arguments = ["--cfg", write_config(tmp_path), "--picture", picture]
    assert call(monkeypatch, augmentation, *arguments, *pictures_in(tmp_path / "sorted")) == 0
    assert Image.open(picture).height > 8 * 128


@pytest.mark.parametrize("size", [(32, 32), (64, 16), (16, 64), (192, 192)])
def test_captions_have_room_in_their_columns(size: tuple[int, int]) -> None:
    names = ("augmented", "mixed and erased", "reconstruction")
    grid = picture_grid({name: torch.zeros(1, 3, *size) for name in names})
    caption = np.asarray(grid.convert("L"))[:26]
    width = (grid.width - 6) // 3
    for column in range(4):
        border = column * width + 3
        assert (caption[:, max(border - 5, 0) : border + 5] == 255).all()


def test_augmentations_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "out.png"
    arguments = ["--cfg", write_config(tmp_path), "--picture", picture]
    assert call(monkeypatch, augmentation, *arguments) == 0
    image = np.asarray(Image.open(picture).convert("RGB"))
    half = image.shape[1] // 2
    assert image.shape[1] > 2 * 100
    assert (image[40:, :half][:, : half - 6] != image[40:, half:][:, : half - 6]).any()


def test_pictures_stand_in_the_middle_of_their_columns() -> None:
    grid = picture_grid(
        {"a very long caption of a column": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, side=16
    )
    dark = (np.asarray(grid.convert("L"))[-12:-8] == 0).all(axis=0).nonzero()[0]
    assert len(dark) == 16
    assert abs(dark.mean() - (grid.width - 1) / 2) <= 1
