"""Outputs, losses and gradients: as on the CPU, as the reference's, as without compilation."""

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from yacs.config import CfgNode

from models import build_classifier, build_pretrain_model
from tests.support.golden_cases import (
    case_input,
    case_targets,
    fill_by_rule,
    require_published_numbers,
)
from tests.support.small_encoders import OURS, SMALL
from utils.compilation import compile_parts
from utils.config import get_config, is_finetuning
from utils.processes.sharding import mixed_precision

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
PUBLISHED = (
    "swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep",
    "swinv2_base__800ep/simmim_pretrain__swinv2_base__img192_window12__800ep",
    "vit_base__800ep/simmim_finetune__vit_base__img224__800ep",
)
CASES = tuple(f"{kind} {stage}" for kind in OURS for stage in ("pretrain", "finetune")) + PUBLISHED
GOLDEN = (
    "swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep",
    "vit_base__800ep/simmim_pretrain__vit_base__img224__800ep",
    "swin_base__100ep/simmim_finetune__swin_base__img192_window6__100ep",
    "swin_base__800ep/simmim_finetune__swin_base__img224_window7__800ep",
    "vit_base__800ep/simmim_finetune__vit_base__img224__800ep",
)


@dataclass(frozen=True)
class Outcome:
    """What a model computes from a batch, and the gradients of its parameters by name."""

    output: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]

    @property
    def gradient(self) -> Tensor:
        """All gradients in one row."""
        return torch.cat([gradient.flatten() for gradient in self.gradients.values()])


def settings(case: str) -> CfgNode:
    """A published recipe, or a small encoder and its stage; without drop path."""
    opts = ["MODEL.DROP_PATH_RATE", 0.0]
    if "/" in case:
        return get_config(f"configs/{case}.yaml", opts)
    kind, stage = case.split()
    return get_config(None, [*SMALL[kind], "MODEL.NAME", stage, "MODEL.NUM_CLASSES", 7, *opts])


def compute(
    case: str,
    device: torch.device,
    weights: torch.dtype = torch.float32,
    precision: torch.dtype = torch.float32,
    compiled: str = "none",
) -> Outcome:
    """Forward and backward pass of two images; weights and images follow from names."""
    cfg = settings(case)
    classifies = is_finetuning(cfg)
    model: Any = build_classifier(cfg, cfg.MODEL.NUM_CLASSES) if classifies else None
    model = model or build_pretrain_model(cfg)
    fill_by_rule(model)
    model = model.to(device, weights).train()
    compile_parts(model, compiled, device)
    patch = getattr(model, "encoder", model).patch_size
    cell = 32 if "/" in case else cfg.DATA.MASK_PATCH_SIZE
    image, mask = case_input(case, 2, cfg.DATA.IMG_SIZE, cell, patch, weights)
    image, mask = image.to(device), mask.to(device)
    with mixed_precision(model, device, precision):
        if classifies:
            output = model(image)
            targets = case_targets(case, 2, cfg.MODEL.NUM_CLASSES).to(device)
            loss = -(targets * output.to(weights).log_softmax(dim=1)).sum(dim=1).mean()
        else:
            output, loss = model.predict(image, mask).detach(), model(image, mask)
    loss.backward()
    gradients = {name: value.grad.cpu() for name, value in model.named_parameters()}
    return Outcome(output.detach().cpu(), loss.detach().cpu(), gradients)


@functools.cache
def exact(case: str) -> Outcome:
    """The outcome in float64 on the CPU."""
    return compute(case, CPU, torch.float64, torch.float32)


def error(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The norm of a difference, relative to that of what is expected (or of `scale`)."""
    whole = (expected if scale is None else scale).double().norm()
    return float((found.double() - expected.double()).norm() / whole)


@pytest.mark.parametrize("case", CASES)
def test_float32_agrees_with_float64_on_the_cpu_to_1e_4(case: str, device: torch.device) -> None:
    found, expected = compute(case, device), exact(case)
    assert error(found.output, expected.output) < 1e-4
    assert error(found.loss, expected.loss) < 1e-4
    assert error(found.gradient, expected.gradient) < 1e-4
    # Sums that nearly cancel keep fewer digits: they count by the norm of all.
    least = 1e-2 * expected.gradient.norm() / len(expected.gradients) ** 0.5
    for name, gradient in expected.gradients.items():
        scale = torch.maximum(gradient.norm(), least)
        assert error(found.gradients[name], gradient, scale) < 1e-4, name


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_errs_no_more_than_on_the_cpu(case: str, device: torch.device) -> None:
    """Rounding to 8 bits costs what it costs on the CPU; twice that is another computation.

    torch's fused kernel, on a CPU in place of the project's own, errs at most 1.12 times as much.
    """
    found, usual = (compute(case, place, precision=torch.bfloat16) for place in (device, CPU))
    expected = exact(case)
    assert error(found.output, expected.output) < 2 * error(usual.output, expected.output)
    assert error(found.gradient, expected.gradient) < 2 * error(usual.gradient, expected.gradient)
    # One number may be close by chance: a rounding of bfloat16 is always granted.
    assert error(found.loss, expected.loss) < max(2 * error(usual.loss, expected.loss), 2**-8)


@pytest.mark.parametrize("path", GOLDEN)
def test_published_sizes_give_the_references_numbers(path: str, device: torch.device) -> None:
    require_published_numbers(path, device, tolerance=1e-4)


@pytest.mark.parametrize("what", ["blocks", "model"])
@pytest.mark.parametrize("kind", OURS)
def test_a_compiled_model_has_the_loss_and_gradients_of_the_eager_one(
    kind: str, what: str, device: torch.device
) -> None:
    case = f"{kind} pretrain"
    eager, compiled = compute(case, device), compute(case, device, compiled=what)
    assert error(compiled.loss, eager.loss) < 1e-5
    assert error(compiled.gradient, eager.gradient) < 1e-4
