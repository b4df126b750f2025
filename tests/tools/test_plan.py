"""The plan's report, and the largest batch."""

import pytest

from tests.support.small_runs import call
from tools import plan
from tools.measuring.needs import Activations


def test_the_largest_batch_fits_and_leaves_a_tenth() -> None:
    activations = Activations(fixed=50, per_image=7)
    assert plan.largest_batch(1000, 150, activations) == 100
    assert plan.largest_batch(100, 150, activations) == 0


@pytest.mark.slow
def test_the_plan_shows_parameters_and_memory_of_a_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml"
    assert call(monkeypatch, plan, "--cfg", cfg, "--gpus", 16) == 0
    said = capsys.readouterr().out
    assert "89,874,104" in said
    assert "memory of each of 16 GPU(s), bfloat16, SHARDING none" in said
    assert call(monkeypatch, plan, "--cfg", cfg, "--gpus", 0) == 2
