"""Masks as a user draws and measures them."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.small_runs import call, write_config, write_finetune_config
from tools import masks


def test_a_table_and_a_picture_have_a_row_for_each_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, picture = write_config(tmp_path), tmp_path / "out.png"
    arguments = ["--cfg", cfg, "--ratios", 0.25, 0.5, "--draws", 20, "--picture", picture]
    opts = ["--opts", "DATA.MASK", "square"]
    assert call(monkeypatch, masks, *arguments, *opts) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if " of 16 " in line]
    assert [row[:5] for row in rows] == [
        ["0.25", "4", "of", "16", "0.250"],
        ["0.5", "9", "of", "16", "0.562"],
    ]
    # A square of 4 x 4 patches in the corner or inside; 3 cells of a side: the rest is one corner.
    assert 0 < float(rows[0][5]) < float(rows[1][5])
    assert float(rows[0][6]) < float(rows[0][5])
    assert f"wrote {picture} (8 masks of each ratio)" in said
    with Image.open(picture) as image:
        assert image.width > 8 * 96
        assert 2 * 96 < image.height < 3 * 96
        first = image.tobytes()
    again = tmp_path / "again.png"
    assert call(monkeypatch, masks, *arguments, *opts, "--picture", again) == 0
    assert capsys.readouterr().out == said.replace("out.png", "again.png")
    assert Image.open(again).tobytes() == first
    other = tmp_path / "other.png"
    assert call(monkeypatch, masks, *arguments, *opts, "--picture", other, "--seed", 1) == 0
    assert Image.open(other).tobytes() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "{}/old.png"], r"old\.png exists already: give another name with --picture"),
        (["--picture", "{}/no/new.png"], r"the folder of --picture .*new\.png does not exist"),
        (["--picture", "{}/new"], r"--picture is .*new, expected the name of a picture"),
        (["--ratios", "0.5", "1.5"], r"DATA\.MASK_RATIO is 1\.5, expected from 0 to 1"),
        (["--ratios", "0.5", "0.99"], r"DATA\.MASK_RATIO is 0\.99, which hides every one of 16"),
        (["--seed", "-1"], "SEED is -1, expected at least 0"),
        (["--opts", "DATA.MASK", "round"], r"DATA\.MASK is 'round'; choices: random, square"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[Any],
    message: str,
) -> None:
    cfg = write_config(tmp_path)
    (tmp_path / "old.png").write_text("old")
    before = sorted(tmp_path.iterdir())
    words = [word.format(tmp_path) for word in arguments]
    picture = ["--picture", tmp_path / "new.png"] if "--picture" not in words else []
    assert call(monkeypatch, masks, "--cfg", cfg, *picture, *words) == 2
    said = capsys.readouterr()
    assert re.fullmatch(rf"error: .*{message}.*\n", said.err)
    assert said.out == ""
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old.png").read_text() == "old"


def test_a_recipe_of_fine_tuning_has_no_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = write_finetune_config(tmp_path)
    assert call(monkeypatch, masks, "--cfg", cfg, "--picture", tmp_path / "new.png") == 2
    assert "is for fine-tuning, expected a recipe of pre-training" in capsys.readouterr().err
    assert not (tmp_path / "new.png").exists()
