"""Schedules against golden rows and against values written out by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lr_scheduler import Scheduler, build_scheduler
from optimizer import scale_lr
from tests.support.golden_cases import read_golden
from utils.config import get_config

GOLDEN = read_golden("lr_schedules.json")
RECIPES = {path.stem: path for path in Path("configs").rglob("*.yaml")}


def scheduler_of(opts: dict[str, Any], peaks: list[float], updates_per_epoch: int) -> Scheduler:
    cfg = get_config(None, [item for pair in opts.items() for item in pair])
    return build_scheduler(cfg, optimizer_with(peaks), updates_per_epoch)


def optimizer_with(peaks: list[float]) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks]
    return torch.optim.SGD(groups, lr=1.0)


def rates(scheduler: Scheduler, updates: int) -> list[float]:
    """The rate of each update in turn."""
    seen = []
    for _ in range(updates):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_published_schedules_agree_to_the_last_digit(name: str) -> None:
    case = GOLDEN[name]
    cfg = get_config(RECIPES[name])
    batch = case["global_batch_size"]
    peak = scale_lr(cfg.TRAIN.BASE_LR, batch)
    optimizer = optimizer_with([peak * multiplier for multiplier in case["group_lr_multipliers"]])
    scheduler = build_scheduler(
        cfg,
        optimizer,
        case["iterations_per_epoch"],
        warmup_lr=scale_lr(cfg.TRAIN.WARMUP_LR, batch),
        min_lr=scale_lr(cfg.TRAIN.MIN_LR, batch),
    )
    for update, *expected in case["rows"]:
        if update >= 0:
            scheduler.set_rates(update + 1)
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx(expected, rel=1e-12)


def test_linear_ends_at_a_hundredth_after_the_warmup() -> None:
    opts: dict[str, Any] = {"TRAIN.EPOCHS": 6, "TRAIN.WARMUP_EPOCHS": 2, "TRAIN.WARMUP_LR": 0.0}
    scheduler = scheduler_of(opts | {"TRAIN.LR_SCHEDULER.NAME": "linear"}, [1.0], 1)
    expected = [0.0, 0.0, 0.5, 1.0, 0.7525, 0.505, 0.2575, 0.01]
    assert rates(scheduler, 8) == pytest.approx(expected)


def test_step_decays_by_the_count_from_zero_after_the_warmup() -> None:
    opts: dict[str, Any] = {"TRAIN.EPOCHS": 6, "TRAIN.WARMUP_EPOCHS": 1, "TRAIN.WARMUP_LR": 0.5}
    opts |= {"TRAIN.LR_SCHEDULER.NAME": "step", "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": 2}
    scheduler = scheduler_of(opts, [1.0], 1)
    assert rates(scheduler, 7) == pytest.approx([0.5, 0.5, 1.0, 0.1, 0.1, 0.01, 0.01])
    scheduler = scheduler_of(opts, [1.0], 3)  # decays after 6, 12, ... updates
    expected = [0.5, 0.5, 2 / 3, 5 / 6, *[1.0] * 3, *[0.1] * 6, 0.01]
    assert rates(scheduler, 14) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prefix", "epochs", "expected"),
    [
        (False, 3, [0.0, 0.0, 0.75, 0.25, 0.0]),  # goes on as if the cosine had begun at 0
        (True, 4, [0.0, 0.0, 1.0, 0.75, 0.25]),  # begins after the warm-up
    ],
)
def test_warmup_prefix_starts_the_cosine_after_the_warmup(
    prefix: bool, epochs: int, expected: list[float]
) -> None:
    opts = {"TRAIN.EPOCHS": epochs, "TRAIN.WARMUP_EPOCHS": 1, "TRAIN.WARMUP_LR": 0.0}
    opts |= {"TRAIN.MIN_LR": 0.0, "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": prefix}
    assert rates(scheduler_of(opts, [1.0], 1), 5) == pytest.approx(expected)


def test_a_group_keeps_its_own_peak_but_shares_the_floor() -> None:
    opts = {"TRAIN.EPOCHS": 2, "TRAIN.WARMUP_EPOCHS": 0, "TRAIN.MIN_LR": 0.1}
    scheduler = scheduler_of(opts, [1.0, 0.5], 10)
    for _ in range(21):
        scheduler.step()
    assert [g["lr"] for g in scheduler.optimizer.param_groups] == pytest.approx([0.1, 0.1])


def test_a_schedule_goes_on_at_any_update() -> None:
    opts = {"TRAIN.EPOCHS": 4, "TRAIN.WARMUP_EPOCHS": 1}
    straight, first = scheduler_of(opts, [1.0], 5), scheduler_of(opts, [1.0], 5)
    expected = rates(straight, 20)
    assert rates(first, 7) == expected[:7]
    second = scheduler_of(opts, [1.0], 5)
    second.set_rates(7)
    assert rates(second, 13) == expected[7:]


def test_an_unknown_schedule_is_an_error_with_the_choices() -> None:
    with pytest.raises(ValueError, match="choices: cosine, linear, step, multistep"):
        scheduler_of({"TRAIN.LR_SCHEDULER.NAME": "cosin"}, [1.0], 1)


def test_a_warmup_prefix_that_would_do_nothing_is_an_error() -> None:
    opts = {"TRAIN.LR_SCHEDULER.NAME": "step", "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": True}
    with pytest.raises(ValueError, match="WARMUP_PREFIX"):
        scheduler_of(opts, [1.0], 1)
