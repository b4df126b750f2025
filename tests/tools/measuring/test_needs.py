"""The counts against real small runs, and their arithmetic."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.small_encoders import OURS, SMALL
from tools.measuring.needs import (
    GPU,
    Activations,
    Needs,
    build,
    count_activations,
    count_needs,
    inputs_of,
    measure_activations,
    memory_of,
)
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
    with FakeTensorMode():
        counted, block = count_activations(cfg, build(cfg, recompute), dtype)
    model: Any = build(cfg, recompute)
    encoder = getattr(model, "encoder", model)
    inputs = [part.zero_() for part in inputs_of(cfg, encoder, 5)]
    found = measure_activations(model, encoder.blocks, inputs, dtype)
    # Without numbers torch counts the statistics of some bfloat16 norms with half their bytes.
    tolerance = 0 if dtype == torch.float32 else 0.03
    assert found == pytest.approx((counted.of(5), block.of(5)), rel=tolerance, abs=0)


@pytest.mark.parametrize("kind", OURS)
def test_counted_parameters_and_operations_are_those_of_the_model(kind: str) -> None:
    cfg = get_config(None, [*SMALL[kind], "MODEL.NAME", "pretrain"])
    needs = count_needs(cfg, torch.float32)
    model: Any = build(cfg, recompute=False)
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
    needs = count_needs(get_config(None, opts), torch.float32)
    assert needs.operations == stem + linear + attention + head


def test_a_gpu_keeps_inputs_of_norms_in_float32_and_a_bias_for_every_shifted_window() -> None:
    """The largest block, a shifted one of Swin's first stage, by hand."""
    cfg = get_config(None, [*SMALL["swin"], "MODEL.NAME", "pretrain", "MODEL.DROP_PATH_RATE", 0.0])
    tokens, width, windows, length, heads = 16 * 16, 16, 16, 4 * 4, 1
    norms = 2 * (4 * tokens * width + 2 * 4 * tokens)  # inputs, means and deviations
    linear = 2 * tokens * width * (1 + 1 + 1 + 4)  # the inputs of four layers
    qkv, gelu = 2 * tokens * 3 * width, 2 * tokens * 4 * width
    bias = 2 * windows * heads * length * length
    logarithms = 4 * windows * heads * 32  # of sums of exponentials, in multiples of 32
    with FakeTensorMode(), GPU:
        _, block = count_activations(cfg, build(cfg, recompute=False), torch.bfloat16)
    assert block.per_image == norms + linear + qkv + gelu + bias + logarithms


def test_sharding_divides_weights_gradients_and_optimizer() -> None:
    none = Activations(0, 1)
    needs = Needs(1000, 100, 300, 0, none, none)
    assert sum(memory_of(needs, 8, sharded=False).values()) == 16 * 1000
    sharded = memory_of(needs, 8, sharded=True)
    assert [sharded[kind] for kind in ("weights", "gradients", "optimizer")] == [500, 500, 1000]
    assert sharded["gathered weights and gradients"] == 4 * (2 * 100 + 3 * 300)
