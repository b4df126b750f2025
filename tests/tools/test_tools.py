"""The tools as a user runs them, on a small model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.golden_cases import GOLDEN, options, read_golden
from tests.small_runs import call, run_folder, run_here, write_config
from tools import augmentation, curves, reconstruct


def test_a_checkpoint_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = write_config(tmp_path)
    assert run_here(monkeypatch, cfg, "--output", tmp_path) == 0
    capsys.readouterr()
    checkpoint, picture = run_folder(tmp_path) / "ckpt_epoch_1.pth", tmp_path / "out.png"
    arguments = ["--cfg", cfg, "--resume", checkpoint, "--picture", picture, "--rows", 3]
    assert call(monkeypatch, reconstruct, *arguments) == 0
    assert "original | masked | reconstruction, 3 rows" in capsys.readouterr().out
    image = Image.open(picture)
    assert image.width > 3 * 100
    assert image.height > 3 * 100


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


def test_augmentations_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "out.png"
    arguments = ["--cfg", write_config(tmp_path), "--picture", picture]
    assert call(monkeypatch, augmentation, *arguments) == 0
    image = np.asarray(Image.open(picture).convert("RGB"))
    half = image.shape[1] // 2
    assert image.shape[1] > 2 * 100
    assert (image[40:, :half][:, : half - 6] != image[40:, half:][:, : half - 6]).any()
