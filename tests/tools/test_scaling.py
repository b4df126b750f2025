"""Time and memory against a key, as a user measures them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.small_runs import call, write_config
from tools import scaling


@pytest.mark.slow
def test_varying_two_keys_gives_tables_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "out.png"
    arguments = ["--cfg", write_config(tmp_path), "--rounds", 1, "--picture", picture]
    arguments += ["--vary", "DATA.BATCH_SIZE", 2, 64, "--vary", "MODEL.SWIN.DEPTHS", "[1,1]"]
    assert call(monkeypatch, scaling, *arguments, "[2,1]") == 0
    *lines, last = capfd.readouterr().out.splitlines()
    assert "| DATA.BATCH_SIZE | s/update | images/s | TFLOP/s | peak memory, MiB |" in lines
    assert any(line.startswith("| [2, 1] |") for line in lines)
    curves = json.loads(last)["curves"]
    few, many = curves["DATA.BATCH_SIZE"]
    assert (few["value"], many["value"]) == (2, 64)
    assert few["images_per_second"] == pytest.approx(2 / few["seconds"])
    assert few["memory_mb"] < many["memory_mb"]
    assert len(np.unique(np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3), axis=0)) > 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "DATA.BATCH_SIZE", "2"], "--vary takes a key and two values or more"),
        (["--vary", "DATA.BATCH", "2", "3"], "did you mean DATA.BATCH_SIZE"),
        (["--vary", "DATA.IMG_SIZE", "32", "x"], "DATA.IMG_SIZE"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, scaling, "--cfg", write_config(tmp_path), *arguments) == 2
    assert message in capfd.readouterr().err


def test_numbers_are_plotted_at_their_value_and_words_in_a_row() -> None:
    assert scaling.places([1, 2.5]) == [1, 2.5]
    assert scaling.places([[2, 2], [96, 192]]) == [4, 288]
    assert scaling.places(["float32", "bfloat16"]) == [0, 1]
