"""Running figures of an epoch, kept on the device until they are read."""

import contextlib
import dataclasses
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from utils.checkpoints.state import EPOCH_FIGURES, STREAK_FIGURES, Position
from utils.processes.group import (
    gather_over_processes,
    largest_over_processes,
    mean_over_processes,
    sum_over_processes,
    world_size,
)

# Halvings from the first loss scale, 65,536, to the last useful one, 1.
_MOST_ADJUSTMENTS = 16


class DivergenceError(ValueError):
    """Too many updates in a row had a non-finite loss or gradient."""

    def __init__(self, update: int, number: int) -> None:
        self.update = update
        after = f", nor are those of the {number - 1} after it" if number > 1 else ""
        super().__init__(
            f"training has diverged: loss or gradient of update {update} are not finite{after}; "
            "the weights are those before it (try a lower TRAIN.BASE_LR)"
        )


class TrainingMetrics:
    """Loss, gradient norm and times of the updates of an epoch, over all processes.

    An update with a non-finite loss or gradient counts as skipped; with a loss scaler (`scales`) a
    finite loss with such a gradient is a scale adjustment, for at most 16 of them in a row. After
    `max_skipped` skipped updates in a row the weights no longer change, and `require_finite` raises
    `DivergenceError`; call it at least every `report_every` updates.
    """

    def __init__(
        self,
        device: torch.device,
        images_per_update: int,
        max_skipped: int,
        scales: bool = False,
        report_every: int = 1,
    ) -> None:
        self.device = device
        self.images_per_update = images_per_update
        self.max_skipped, self.scales = max_skipped, scales
        self.streak = torch.zeros(len(STREAK_FIGURES), dtype=torch.float64, device=device)
        # Positions of the latest updates; a divergence is found at most this many updates late.
        self.begun: deque[Position] = deque(maxlen=max_skipped + report_every + 1)
        self.start_epoch()

    def start_epoch(self) -> None:
        """Reset the figures and the clock for a new epoch."""
        self.sums = torch.zeros(len(EPOCH_FIGURES), dtype=torch.float64, device=self.device)
        self.latest = self.sums[:2]
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure times from now on, and keep the figures."""
        self.num_updates = 0  # since then
        self.waited = self.update_time = 0.0
        self.start = self.previous = time.perf_counter()

    def state(self) -> list[list[float]]:
        """Figures of all processes, one row each; call it in all of them."""
        rows: list[list[float]] = gather_over_processes(
            torch.cat((self.sums, self.streak))
        ).tolist()
        return rows

    def load(self, figures: list[list[float]], own: int) -> None:
        """Continue from the figures of an earlier run, if there are any.

        Take row `own`, or the mean of all rows where the number of processes was another one.
        """
        if not figures:
            return
        values = torch.tensor(figures, dtype=torch.float64, device=self.device)
        row = values[own] if len(values) == world_size() else values.mean(dim=0)
        self.sums, self.streak = row[: len(EPOCH_FIGURES)], row[len(EPOCH_FIGURES) :]

    def begin_update(self, position: Position) -> None:
        """Record the position at which the next update begins."""
        self.begun.append(dataclasses.replace(position))

    def place_of(self, update: int | None) -> Position | None:
        """The position where `update` (None: the latest) or the earliest known later one began."""
        latest = [self.begun[-1]] if self.begun else []
        known = latest if update is None else [at for at in self.begun if at.update >= update]
        return known[0] if known else None

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside the context as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def guarded(self, loss: Tensor) -> Tensor:
        """The loss, multiplied by NaN where it is not finite or training has diverged.

        Averaged gradients carry the NaN of one process to all of them, so all skip the update
        without further communication, and no host waits for its device.
        """
        healthy = loss.isfinite() & (self.streak[0] < self.max_skipped)
        return loss * torch.where(healthy, 1.0, math.nan)

    def add(self, update: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Add the figures of an update, on the device."""
        self.latest = torch.stack((loss.detach(), grad_norm.detach())).to(self.sums)
        finite_loss, finite_norm = self.latest.isfinite()
        if self.scales:  # else the averaged gradients alone tell all processes to skip
            finite_loss = sum_over_processes((~finite_loss).float()) == 0
        skipped, first, adjustments = self.streak
        good = finite_loss & finite_norm
        adjusted = finite_loss & ~finite_norm & (adjustments < _MOST_ADJUSTMENTS) & self.scales
        bad = ~good & ~adjusted
        figures = torch.where(good, self.latest, 0.0)
        counts = torch.stack((good, bad, adjusted)).to(self.sums)
        self.sums = self.sums + torch.cat((figures, counts))
        first = torch.where(bad & (skipped == 0), float(update), first)
        skipped = torch.where(good, 0.0, skipped + bad)
        adjustments = torch.where(good, 0.0, adjustments + adjusted)
        self.streak = torch.stack((skipped, first, adjustments))
        self.num_updates += 1
        now = time.perf_counter()
        self.update_time, self.previous = now - self.previous, now

    def require_finite(self) -> None:
        """DivergenceError after `max_skipped` skips in a row; call it in all processes."""
        skipped, first, _ = (
            largest_over_processes(int(value), self.device) for value in self.streak
        )
        if skipped >= self.max_skipped:
            raise DivergenceError(first, self.max_skipped)

    def summary(self) -> dict[str, float]:
        """Figures of the latest update and means since the epoch's start; call it in all processes.

        Means are over updates that were not skipped. Raises `DivergenceError`.
        """
        self.require_finite()
        means = self.sums[:2] / self.sums[2]
        figures = mean_over_processes(torch.cat((self.latest, means, self.sums[3:])))
        loss, grad_norm, loss_mean, grad_norm_mean, skipped, adjusted = figures.tolist()
        elapsed = max(time.perf_counter() - self.start, 1e-9)
        return {
            "loss": loss,
            "loss_mean": loss_mean,
            "grad_norm": grad_norm,
            "grad_norm_mean": grad_norm_mean,
            "skipped": round(skipped),
            "scale_adjustments": round(adjusted),
            "time": self.update_time,
            "time_mean": elapsed / max(self.num_updates, 1),
            "images_per_second": self.images_per_update * self.num_updates / elapsed,
            "data_wait": self.waited / elapsed,
            "memory_mb": peak_memory_mb(self.device),
        }


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MiB: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # Linux, where getrusage's peak starts from that of the parent process
        words = Path("/proc/self/status").read_text(encoding="utf-8").split()
        return int(words[words.index("VmHWM:") + 1]) / 2**10
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
