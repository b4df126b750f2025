"""Updates of every recipe on a GPU that is not there: no waiting, and attention as kernels take it.

The backward pass needs a real one (tests/gpu).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.fake_gpu import GPU, Attentions, Waits, fake_gpu
from tests.support.small_runs import ROOT
from tools.measuring.workloads import Batches, build_stage, synthetic_batch
from utils.checkpoints.state import TrainState
from utils.config import get_config, is_finetuning
from utils.files import RunFolder
from utils.training.engine import Loop, train_one_epoch
from utils.training.metrics import TrainingMetrics
from utils.training.run import Run, build_state

RECIPES = sorted(
    str(path.relative_to(ROOT / "configs"))
    for path in ROOT.glob("configs/*/simmim_*.yaml")
    if path.parent.name != "_base_"
)


class Metrics(TrainingMetrics):
    """Figures that nobody reads."""

    def summary(self) -> dict[str, float]:
        """Reading the figures is what makes the host wait, once in PRINT_FREQ updates."""
        return {}


def train(
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    precision: torch.dtype = torch.bfloat16,
    *opts: Any,
    spoil: Callable[[Tensor], object] = lambda loss: None,
) -> tuple[TrainState, Attentions]:
    """Two updates of two images, of which the last must not wait; what attention was given.

    The encoder has its true sizes, but at most two blocks of a kind.
    """
    path = str(ROOT / "configs" / recipe)
    cfg = get_config(path)
    section = cfg.MODEL.TYPE.upper()
    blocks: Any = ("DEPTH", 2)
    if section != "VIT":
        blocks = ("DEPTHS", [min(depth, 2) for depth in cfg.MODEL[section].DEPTHS])
    short = [f"MODEL.{section}.{blocks[0]}", blocks[1], "TRAIN.ACCUMULATION_STEPS", 1]
    cfg = get_config(path, ["DATA.BATCH_SIZE", 2, *short, *opts])
    attentions = Attentions()
    with fake_gpu(), attentions:
        with GPU:
            model, compute_loss = build_stage(cfg, GPU)
        run = Run(cfg, GPU, precision, RunFolder(Path()))
        state = build_state(run, model, 3, validates=is_finetuning(cfg))
        state.scaler = torch.amp.GradScaler("cuda", enabled=precision == torch.float16)
        encoder: Any = getattr(model, "encoder", model)
        batch: Any = [part.to(GPU) for part in synthetic_batch(cfg, encoder)]

        def backward(loss: Tensor) -> None:
            """What a fake GPU cannot do."""
            spoil(loss)
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        metrics = Metrics(GPU, 2, 3, state.scaler.is_enabled())
        batches: Any = Batches(batch, 2, 1)
        loop = Loop(run, state, model, batches, compute_loss, metrics, 3, lambda record: None)
        train_one_epoch(loop)  # constants move to the device
        attentions.calls.clear()
        state.position.complete_epoch()
        with Waits():
            train_one_epoch(loop)
    return state, attentions


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_update_of_a_recipe_does_not_wait_and_gives_attention_what_fused_kernels_take(
    monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    state, attentions = train(monkeypatch, recipe)
    assert state.position.update == 2
    encoder: Any = getattr(state.model, "encoder", state.model)
    assert len(attentions.calls) == len(encoder.blocks)
    for query, key, value, bias in attentions.calls:
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert bias is not None
        assert bias.dtype == query.dtype
        assert bias.stride(-1) == 1, "kernels refuse it"
        assert all(stride % 8 == 0 for stride in bias.stride()[:-1]), "torch copies it"


PRETRAIN = "swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep.yaml"


def test_scaled_gradients_do_not_wait_either(monkeypatch: pytest.MonkeyPatch) -> None:
    _, attentions = train(monkeypatch, PRETRAIN, torch.float16)
    assert {query.dtype for query, *_ in attentions.calls} == {torch.float16}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda loss: loss.item(),
        lambda loss: loss.expand(2).cpu(),
        lambda loss: loss.expand(2)[torch.tensor([0, 1])],
        lambda loss: loss.expand(2) + torch.ones(2).to(GPU),
        lambda loss: loss.expand(2)[loss.expand(2) > 0],
    ],
    ids=["number", "copy to the CPU", "index on the CPU", "copy from the CPU", "size"],
)
def test_whatever_makes_the_host_wait_is_found(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], object]
) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=r"wait|aten|data"):
        train(monkeypatch, PRETRAIN, spoil=spoil)
