"""The report of GPU measurements, as far as it needs none."""

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
    monkeypatch.setattr("sys.argv", ["gpu_report", "--output", str(tmp_path / "none" / "x")])
    with pytest.raises(FileNotFoundError):
        gpu_report.main()
