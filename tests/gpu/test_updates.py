"""Updates by the training loop: kernels, waiting, memory, loss scaling, accumulation."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from yacs.config import CfgNode

from tests.support.recipe_updates import PRETRAIN, RECIPES, build_loop, short_recipe
from tests.support.small_encoders import OURS, SMALL
from tests.support.small_runs import ROOT
from tools.measuring.needs import count_needs, count_parameters, memory_of
from tools.measuring.workloads import synthetic_batch, training_work
from utils.config import get_config
from utils.training.engine import Loop, train_one_epoch
from utils.training.metrics import TrainingMetrics, peak_memory_mb

pytestmark = pytest.mark.gpu

FUSED = [
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
]
MOST_ON_A_CPU = 150e6  # parameters


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """RuntimeError where the host waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def settings(kind: str, *opts: Any) -> CfgNode:
    """Pre-training of a small encoder, the same in every precision."""
    fixed = ["MODEL.NAME", "pretrain", "MODEL.DROP_PATH_RATE", 0.0, "TRAIN.WARMUP_EPOCHS", 0]
    return get_config(None, [*SMALL[kind], *fixed, *opts])


def weights_of(loop: Loop) -> list[Tensor]:
    return [parameter.detach().cpu().clone() for parameter in loop.model.parameters()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_updates_of_a_recipe_use_fused_attention_alone_and_do_not_wait(
    recipe: str, device: torch.device, half: torch.dtype
) -> None:
    averaged = ("TRAIN.EMA_DECAY", 0.9)  # the weights that are validated
    cfg = short_recipe(recipe, "TRAIN.SHARDING", "none", *averaged)  # they exclude each other
    if device.type == "cpu" and count_parameters(cfg) > MOST_ON_A_CPU:
        pytest.skip("takes minutes on a CPU")
    loop = build_loop(cfg, device, half, updates=2)
    before = weights_of(loop)
    with sdpa_kernel(FUSED):
        train_one_epoch(loop)  # constants move to the device
        loop.state.position.complete_epoch()
        with no_waiting(device):
            train_one_epoch(loop)
    assert loop.state.position.update == 4
    assert not any(loop.metrics.streak[:1].tolist()), "no update was skipped"
    after = weights_of(loop)
    assert all(value.isfinite().all() for value in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_batches_of_a_loader_do_not_make_the_host_wait(
    gpu: torch.device, half: torch.dtype
) -> None:
    """They come from pinned memory, which the GPU copies by itself."""
    cfg = short_recipe(PRETRAIN)
    loop: Any = build_loop(cfg, gpu, half, updates=2)
    batch = [part.pin_memory() for part in synthetic_batch(cfg, loop.model.encoder)]
    loop.loader = [batch] * 2
    train_one_epoch(loop)
    loop.state.position.complete_epoch()
    with no_waiting(gpu):
        train_one_epoch(loop)


def test_a_number_that_is_read_makes_the_host_wait(gpu: torch.device) -> None:
    """Otherwise the tests above would prove nothing."""
    with no_waiting(gpu), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(2, device=gpu).sum().item()


def test_math_is_no_fused_attention(gpu: torch.device, half: torch.dtype) -> None:
    """Otherwise the kernels would not matter: a bias whose last axis is not contiguous has none."""
    query = torch.randn(2, 2, 8, 16, device=gpu, dtype=half)
    bias = torch.randn(2, 2, 8, 8, device=gpu, dtype=half).transpose(-1, -2)
    attend = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(FUSED):
        attend(query, query, query, attn_mask=bias.contiguous())
        with pytest.raises(RuntimeError, match="kernel"):
            attend(query, query, query, attn_mask=bias)


@pytest.mark.parametrize("recompute", [False, True])
def test_an_update_takes_the_memory_of_the_plan_within_a_tenth(
    recompute: bool, gpu: torch.device
) -> None:
    opts = ["TRAIN.PRECISION", "bfloat16", "TRAIN.USE_CHECKPOINT", recompute]
    cfg = get_config(str(ROOT / "configs" / PRETRAIN), opts)
    needs = count_needs(cfg, torch.bfloat16)
    activations = needs.recomputed if recompute else needs.kept
    planned = sum(memory_of(needs, 1, False).values()) + activations.of(cfg.DATA.BATCH_SIZE)
    torch.cuda.reset_peak_memory_stats(gpu)
    before = torch.cuda.memory_allocated(gpu)
    work = training_work(cfg, 2, False)
    work.run()
    real = peak_memory_mb(gpu) - before / 2**20
    print(f"planned {planned / 2**20:.0f} MiB, real {real:.0f}")
    assert real == pytest.approx(planned / 2**20, rel=0.1)


def test_float16_gradients_that_overflow_adjust_the_scale_and_leave_the_weights(
    device: torch.device,
) -> None:
    cfg = settings("swin", "DATA.BATCH_SIZE", 4)
    loop = build_loop(cfg, device, torch.float16, updates=1, metrics=TrainingMetrics)
    assert loop.state.scaler.is_enabled()
    first = 2.0**40  # far beyond float16's largest number, 65,504
    loop.state.scaler = torch.amp.GradScaler(device.type, init_scale=first)
    before = weights_of(loop)
    train_one_epoch(loop)
    figures = loop.metrics.summary()
    assert (figures["scale_adjustments"], figures["skipped"]) == (1, 0)
    assert loop.state.scaler.get_scale() == first / 2
    assert all(map(torch.equal, before, weights_of(loop)))
    loop.state.scaler.update(2.0**10)
    train_one_epoch(loop)
    assert loop.metrics.summary()["scale_adjustments"] == 1
    assert not all(map(torch.equal, before, weights_of(loop)))


@pytest.mark.parametrize("kind", OURS)
def test_four_micro_batches_are_one_batch_of_four_times_the_size(
    kind: str, device: torch.device
) -> None:
    sgd = ["TRAIN.OPTIMIZER.NAME", "sgd"]
    ends, figures = [], []
    for batch, steps in ((8, 1), (2, 4)):
        cfg = settings(kind, "DATA.BATCH_SIZE", batch, "TRAIN.ACCUMULATION_STEPS", steps, *sgd)
        torch.manual_seed(0)
        loop: Any = build_loop(cfg, device, torch.float32, 2, metrics=TrainingMetrics)
        torch.manual_seed(1)
        whole = synthetic_batch(settings(kind, "DATA.BATCH_SIZE", 16), loop.model.encoder)
        loop.loader = list(zip(*(part.split(batch) for part in whole), strict=True))
        train_one_epoch(loop)
        ends.append(weights_of(loop))
        figures.append([loop.metrics.summary()[name] for name in ("loss_mean", "grad_norm_mean")])
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
