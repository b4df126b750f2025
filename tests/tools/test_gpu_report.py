"""The report of GPU measurements, as far as it needs none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_runs import ROOT
from tools import gpu_report
from tools.gpu_report import RECIPES, largest_batch, row_of


def test_every_recipe_is_there() -> None:
    for recipe, _ in RECIPES.values():
        assert (ROOT / "configs" / f"{recipe}.yaml").exists()


def test_a_row_has_the_figures_of_three_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the commands only the last lines matter here; they are those of the benchmark."""

    def measured(recipe: str, options: list[str], batch: int, rounds: int, *flags: str) -> Any:
        row = {"images_per_second": 1234.5, "utilization": 0.456, "memory_mb": 2048.0}
        ratios = {flags[-1]: {"median": 1.5, "smallest": 1.4, "largest": 1.6}} if flags else {}
        return {"rows": {"this project": row}, "ratio": ratios} if batch <= 8 else {}

    monkeypatch.setattr(gpu_report, "measure", measured)
    spread, figures = "1.50 (1.40-1.60)", ["1,234", "46%", "2.0"]
    cells = row_of("ViT-B", 2, 3, [])
    assert cells == ["ViT-B", "2", *figures, spread, spread, *figures[:2], spread]
    assert row_of("SwinV2-B", 2, 3, [])[5] == "-"  # transformers has none
    found = largest_batch("ViT-B", 2, 64, [])
    assert found == ["ViT-B, the largest batch", "8", *figures, *["-"] * 5]


@pytest.mark.slow
def test_a_measurement_that_fails_is_told_and_leaves_its_cells_empty(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert gpu_report.measure("nowhere/none", [], 2, 1) == {}
    assert "config file configs/nowhere/none.yaml does not exist" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["gpu_report", "--output", str(tmp_path / "none" / "x"), "--opts", "DEVICE", "cpu"],
    )
    with pytest.raises(FileNotFoundError):
        gpu_report.main()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rounds", "0"], "--rounds: 0 is not a whole number"),
        (["--opts", "TRAIN.COMPLIE", "model"], "did you mean TRAIN.COMPILE?"),
        (["--opts", "MODEL.VIT.NUM_HEADS", "-1"], "MODEL.VIT.NUM_HEADS is -1"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_measured(
    arguments: list[str], expected: str
) -> None:
    command = [sys.executable, "-m", "tools.gpu_report", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_rows_are_in_the_file_as_soon_as_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends early keeps what it has measured."""

    def ended(*arguments: Any) -> list[str]:
        raise KeyboardInterrupt

    output = tmp_path / "gpu.md"
    monkeypatch.setattr(
        "sys.argv", ["gpu_report", "--output", str(output), "--opts", "DEVICE", "cpu"]
    )
    monkeypatch.setattr(gpu_report, "row_of", lambda title, *rest: [title])
    monkeypatch.setattr(gpu_report, "largest_batch", ended)
    with pytest.raises(KeyboardInterrupt):
        gpu_report.main()
    assert "| Swin-B, window 6 |" in output.read_text()
