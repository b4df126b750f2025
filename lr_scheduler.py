"""Learning-rate schedules: pure functions of the update, and the object that applies them."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from yacs.config import CfgNode

from utils.messages import choose

Schedule = Callable[[int, float], float]  # (update t, peak) -> learning rate


def warmup(t: int, peak: float, *, start: float, length: int) -> float:
    """Linear from `start` at t = 0 to `peak` at t = `length`."""
    return start + t * (peak - start) / length


def cosine(t: int, peak: float, *, end: float, total: int) -> float:
    """Half a cosine from `peak` at t = 0 to `end` at t = `total`."""
    return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * t / total))


def linear(t: int, peak: float, *, total: int) -> float:
    """Linear from `peak` at t = 0 to a hundredth of it at t = `total`."""
    return peak - (peak - 0.01 * peak) * (t / total)


def step(t: int, peak: float, *, length: int, rate: float) -> float:
    """`peak`, multiplied by `rate` after every `length` updates."""
    return peak * rate ** (t // length)


def multistep(t: int, peak: float, *, milestones: Sequence[int], gamma: float) -> float:
    """`peak`, multiplied by `gamma` at every milestone (sorted)."""
    return peak * gamma ** bisect_right(milestones, t)


class Scheduler:
    """Set every group's learning rate; a group's peak is its rate at construction.

    Update 0 runs with the rate of t = 0, update n with that of t = n - 1, as in the published runs.
    `update` is the update whose rates are set; the training loop advances it.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.set_rates(0)

    def set_rates(self, update: int) -> None:
        """Set the learning rates of an update, counted from 0."""
        self.update = update
        for group, rate in zip(self.optimizer.param_groups, self.rates(update), strict=True):
            group["lr"] = rate

    def rates(self, update: int) -> list[float]:
        """Learning rate of each group in an update, counted from 0."""
        return [self.schedule(max(update - 1, 0), peak) for peak in self.peaks]

    def step(self) -> None:
        """Set the rates of the next update, for a loop that does not count its updates."""
        self.set_rates(self.update + 1)


def build_scheduler(
    cfg: CfgNode,
    optimizer: Optimizer,
    updates_per_epoch: int,
    *,
    warmup_lr: float | None = None,
    min_lr: float | None = None,
) -> Scheduler:
    """Build the schedule LR_SCHEDULER.NAME over all epochs, with a linear warm-up.

    `warmup_lr` and `min_lr` are absolute; by default the values of the config are used unscaled.
    """
    keys = cfg.TRAIN.LR_SCHEDULER
    start = cfg.TRAIN.WARMUP_LR if warmup_lr is None else warmup_lr
    end = cfg.TRAIN.MIN_LR if min_lr is None else min_lr
    total = cfg.TRAIN.EPOCHS * updates_per_epoch
    length = cfg.TRAIN.WARMUP_EPOCHS * updates_per_epoch
    after = max(total - length, 1)
    milestones = sorted(epoch * updates_per_epoch for epoch in keys.MULTISTEPS)
    if keys.WARMUP_PREFIX and keys.NAME in ("step", "multistep"):
        raise ValueError(f"LR_SCHEDULER.WARMUP_PREFIX is for cosine, not for {keys.NAME}")

    def cosine_after_warmup(t: int, peak: float) -> float:
        if keys.WARMUP_PREFIX:
            return cosine(t - length, peak, end=end, total=after)
        return cosine(t, peak, end=end, total=total)

    schedules: dict[str, Schedule] = {
        "cosine": cosine_after_warmup,
        "linear": lambda t, peak: linear(t - length, peak, total=after),
        "step": lambda t, peak: step(
            t, peak, length=keys.DECAY_EPOCHS * updates_per_epoch, rate=keys.DECAY_RATE
        ),
        "multistep": lambda t, peak: multistep(t, peak, milestones=milestones, gamma=keys.GAMMA),
    }
    schedule = choose(schedules, keys.NAME, "TRAIN.LR_SCHEDULER.NAME")

    def with_warmup(t: int, peak: float) -> float:
        return warmup(t, peak, start=start, length=length) if t < length else schedule(t, peak)

    return Scheduler(optimizer, with_warmup)
