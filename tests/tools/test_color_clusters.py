"""Codebooks of colours, from pictures to a run that learns them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.support.small_runs import (
    call,
    metrics_of,
    pictures_in,
    run_folder,
    run_here,
    write_config,
)
from tools import color_clusters, reconstruct

NUMBER = "MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER"
COLOURS = np.array([[250, 10, 10], [10, 240, 20], [30, 40, 250]], np.uint8)
TARGET = ["MODEL.SIMMIM.TARGET", "color_clusters", "MODEL.SIMMIM.LOSS", "cross_entropy"]


def write_pictures(folder: Path) -> None:
    """Pictures of one colour each, with a little noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(12):
        pixels = COLOURS[index % 3] + random.integers(-4, 5, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02}.png")


def test_the_centres_are_the_colours_of_the_pictures_and_a_run_learns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures")
    cfg, codebook = write_config(tmp_path), tmp_path / "colours.safetensors"
    data = pictures_in(tmp_path / "pictures", NUMBER, 3)
    words: list[Any] = ["--cfg", cfg, "--codebook", codebook, *data]
    assert call(monkeypatch, color_clusters, *words) == 0
    assert "3 colours of 12000 pixels in 12 pictures" in capsys.readouterr().out
    centres = load_file(codebook)["centres"]
    assert centres.dtype == np.float32
    order = [np.abs(centres * 255 - colour).sum(1).argmin() for colour in COLOURS]
    np.testing.assert_allclose(centres[order] * 255, COLOURS, atol=1)

    first = codebook.read_bytes()
    assert call(monkeypatch, color_clusters, *words) == 2
    assert "exists already: give another name" in capsys.readouterr().err
    codebook.unlink()
    assert call(monkeypatch, color_clusters, *words) == 0
    assert codebook.read_bytes() == first, "the seed determines the colours"

    opts = [*TARGET, "MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK", codebook, "TRAIN.EPOCHS", 1]
    run = ["--output", tmp_path, *data, *opts, "TRAIN.WARMUP_EPOCHS", 0]
    assert run_here(monkeypatch, cfg, *run) == 0
    losses = [record["loss"] for record in metrics_of(tmp_path) if "loss" in record]
    assert losses[0] == pytest.approx(np.log(3), abs=0.5)
    assert (run_folder(tmp_path) / "reconstruction.png").exists()
    picture = ["--picture", tmp_path / "out.png", "--rows", 2]
    assert call(monkeypatch, reconstruct, "--cfg", cfg, *picture, *run) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--opts", NUMBER, 1], "NUMBER is 1, expected"),
        (["--pictures", 2, "--opts", NUMBER, 4000], "2 pictures have .* colours among the pixels"),
        (["--seed", -1], "--seed is -1, expected 0"),
        (["--codebook", "nowhere/x.safetensors"], "there is no folder"),
    ],
)
def test_what_no_centres_come_of_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[Any],
    message: str,
) -> None:
    write_pictures(tmp_path / "pictures")
    common = ["--cfg", write_config(tmp_path), "--codebook", tmp_path / "x.safetensors"]
    data = pictures_in(tmp_path / "pictures")
    assert call(monkeypatch, color_clusters, *common, *data, *words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert not (tmp_path / "x.safetensors").exists()
