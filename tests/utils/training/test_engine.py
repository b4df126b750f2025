"""The training loop: accumulation, clipping, precision, what it reports."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.one_epoch import run_epoch
from utils.training.metrics import DivergenceError, TrainingMetrics


def test_four_micro_batches_are_one_batch_of_four_times_the_size() -> None:
    whole, whole_reports, whole_loss = run_epoch(8)
    parts, part_reports, part_loss = run_epoch(2, "TRAIN.ACCUMULATION_STEPS", 4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    assert len(whole_reports) == len(part_reports) == 4
    assert part_loss == pytest.approx(whole_loss, rel=1e-12)
    norms = [[line["grad_norm"] for line in lines] for lines in (whole_reports, part_reports)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)


def test_clipping_bounds_the_step_and_reports_the_norm_before() -> None:
    start = nn.Linear(5, 3).double()
    before = [parameter.detach().clone() for parameter in start.parameters()]
    model, reports, _ = run_epoch(32, "TRAIN.CLIP_GRAD", 1e-3, model=start)
    steps = zip(model.parameters(), before, strict=True)
    moved = sum(((parameter - old) ** 2).sum().item() for parameter, old in steps) ** 0.5
    assert moved == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert reports[0]["grad_norm"] > 0.1


def test_reports_name_update_rate_and_the_figures_of_the_latest_and_mean() -> None:
    _, reports, mean = run_epoch(8, report_every=3)
    assert [report["index"] for report in reports] == [0, 3]
    assert [report["update"] for report in reports] == [0, 3]
    assert reports[0]["loss"] == reports[0]["loss_mean"]
    assert reports[-1]["loss_mean"] == mean
    assert reports[0]["lr"] == 0.1
    assert reports[0]["images_per_second"] > 0
    assert 0 <= reports[0]["data_wait"] <= 1


def test_the_learning_rate_is_that_of_the_position_in_the_schedule() -> None:
    opts = ("TRAIN.LR_SCHEDULER.NAME", "step", "TRAIN.LR_SCHEDULER.DECAY_EPOCHS", 1)
    begun, moved = (run_epoch(8, *opts, offset=offset)[1] for offset in (0, 2))
    # A decay comes after 4 updates; update n has the rate of t = n - 1. The first rate of the loop
    # is that of the optimizer, which a resumed run sets beforehand.
    assert [report["lr"] for report in begun] == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert [report["lr"] for report in moved] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_randomness_in_the_network_follows_from_seed_and_update() -> None:
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 3)).double()
        torch.manual_seed(torch.seed() % 1000)  # what was drawn before must not matter
        losses.append([report["loss"] for report in run_epoch(8, "SEED", seed, model=model)[1]])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]


def test_losses_that_are_no_numbers_stop_the_run() -> None:
    model = nn.Linear(5, 3).double()
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(DivergenceError, match=r"of update 0 are not finite, nor .* the 2 after it"):
        run_epoch(8, model=model)


def test_no_update_waits_for_the_device_unless_it_is_reported() -> None:
    """Reading a number from the device is what makes the host wait: count the reads."""

    class Counting(torch.overrides.TorchFunctionMode):
        reads = 0

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function in (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__):
                Counting.reads += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for batch_size in (16, 2):  # 2 and 16 updates, 2 reports each
        Counting.reads = 0
        with Counting():
            run_epoch(batch_size, report_every=1000)
        counts.append(Counting.reads)
    assert counts[0] == counts[1] > 0


def test_after_as_many_skipped_updates_as_are_allowed_the_weights_stay() -> None:
    metrics = TrainingMetrics(torch.device("cpu"), 8, max_skipped=2)
    healthy, bad = torch.tensor(1.0), torch.tensor(math.nan)
    for update in range(2):
        assert metrics.guarded(healthy).isfinite()
        metrics.add(update, bad, healthy)
    assert metrics.guarded(healthy).isnan()
    with pytest.raises(DivergenceError, match="of update 0 are not finite"):
        metrics.require_finite()


def test_a_good_update_ends_the_row_of_skipped_ones() -> None:
    metrics = TrainingMetrics(torch.device("cpu"), 8, max_skipped=2)
    healthy, bad = torch.tensor(1.0), torch.tensor(math.nan)
    for update, loss in enumerate((bad, healthy, bad)):
        metrics.add(update, loss, healthy)
    metrics.require_finite()
    assert metrics.guarded(healthy).isfinite()
    assert metrics.summary()["skipped"] == 2
