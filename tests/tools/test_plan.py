"""The plan's counts against real small runs, and its arithmetic."""

from typing import Any

import pytest
import torch

from tests.support.small_encoders import OURS, SMALL
from tests.support.small_runs import call
from tools import plan
from utils.config import get_config

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_counted_activations_are_those_of_a_real_run(
    kind: str, stage: str, dtype: torch.dtype, recompute: bool
) -> None:
    cfg = get_config(None, [*SMALL[kind], "MODEL.NAME", stage, "MODEL.NUM_CLASSES", 7])
    with plan.FakeTensorMode():
        counted, block = plan.count_activations(cfg, plan.build(cfg, recompute), dtype)
    model: Any = plan.build(cfg, recompute)
    encoder = getattr(model, "encoder", model)
    inputs = [part.zero_() for part in plan.inputs_of(cfg, encoder, 5)]
    found = plan.measure_activations(model, encoder.blocks, inputs, dtype)
    # Without numbers torch counts the statistics of some bfloat16 norms with half their bytes.
    tolerance = 0 if dtype == torch.float32 else 0.03
    assert found == pytest.approx((counted.of(5), block.of(5)), rel=tolerance, abs=0)


@pytest.mark.parametrize("kind", OURS)
def test_counted_parameters_and_operations_are_those_of_the_model(kind: str) -> None:
    cfg = get_config(None, [*SMALL[kind], "MODEL.NAME", "pretrain"])
    needs = plan.count_needs(cfg, torch.float32)
    model: Any = plan.build(cfg, recompute=False)
    assert needs.parameters == sum(parameter.numel() for parameter in model.parameters())
    inside = sum(p.numel() for block in model.encoder.blocks for p in block.parameters())
    assert needs.outside_blocks == needs.parameters - inside
    assert needs.recomputed.per_image < needs.kept.per_image


def test_operations_are_those_of_the_matrix_products() -> None:
    """One ViT block and the layers around it, by hand."""
    opts = [*SMALL["vit"], "MODEL.VIT.DEPTH", 1, "MODEL.NAME", "pretrain"]
    tokens, width, pixels = 65, 32, 4 * 4 * 3
    stem = head = 2 * 64 * pixels * width
    linear = 2 * tokens * width * (3 * width + width + 4 * width + 4 * width)
    attention = 2 * 2 * tokens * tokens * width
    needs = plan.count_needs(get_config(None, opts), torch.float32)
    assert needs.operations == stem + linear + attention + head


def test_sharding_divides_weights_gradients_and_optimizer() -> None:
    none = plan.Activations(0, 1)
    needs = plan.Needs(1000, 100, 300, 0, none, none)
    assert sum(plan.memory_of(needs, 8, sharded=False).values()) == 16 * 1000
    sharded = plan.memory_of(needs, 8, sharded=True)
    assert [sharded[kind] for kind in ("weights", "gradients", "optimizer")] == [500, 500, 1000]
    assert sharded["gathered weights and gradients"] == 4 * (2 * 100 + 3 * 300)


def test_the_largest_batch_fits_and_leaves_a_tenth() -> None:
    activations = plan.Activations(fixed=50, per_image=7)
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
