"""Running figures of an epoch, kept on the device until somebody looks."""

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

from utils.checkpoints.state import EPOCH_FIGURES, ROW_FIGURES, Position
from utils.processes.group import (
    gather_over_processes,
    largest_over_processes,
    mean_over_processes,
    world_size,
)

# So many halvings make of the first loss scale, 65,536, the last one that makes sense, 1.
_MOST_ADJUSTMENTS = 16


class DivergenceError(ValueError):
    """Too many updates in a row had a loss or gradient that is not finite."""

    def __init__(self, update: int, number: int) -> None:
        self.update = update
        after = f", nor are those of the {number - 1} after it" if number > 1 else ""
        super().__init__(
            f"training has diverged: loss or gradient of update {update} are not finite{after}; "
            "the weights are those before it (try a lower TRAIN.BASE_LR)"
        )


class TrainingMetrics:
    """Loss, gradient norm and times of the updates of an epoch, over all processes.

    An update whose loss or gradient is not finite is counted as skipped; with a loss scaler
    (`scales`) a finite loss with such a gradient is a scale adjustment. After `max_skipped` skipped
    ones in a row the weights stay as they are, and `require_finite` raises `DivergenceError`, which
    is to be called at least every `report_every` updates.
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
        self.row = torch.zeros(len(ROW_FIGURES), dtype=torch.float64, device=device)
        # Where the latest updates began: a divergence is found at most so many updates late.
        self.begun: deque[Position] = deque(maxlen=max_skipped + report_every + 1)
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget the epoch before."""
        self.sums = torch.zeros(len(EPOCH_FIGURES), dtype=torch.float64, device=self.device)
        self.latest = self.sums[:2]
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure times from now on; figures stay."""
        self.num_updates = 0  # since then
        self.waited = self.update_time = 0.0
        self.start = self.previous = time.perf_counter()

    def state(self) -> list[list[float]]:
        """Figures of every process, a row for each; call it in all of them."""
        rows: list[list[float]] = gather_over_processes(torch.cat((self.sums, self.row))).tolist()
        return rows

    def load(self, figures: list[list[float]], own: int) -> None:
        """Go on with figures of an earlier run, if there are any.

        They are row `own`, or the mean of all rows where there were other processes.
        """
        if not figures:
            return
        values = torch.tensor(figures, dtype=torch.float64, device=self.device)
        row = values[own] if len(values) == world_size() else values.mean(dim=0)
        self.sums, self.row = row[: len(EPOCH_FIGURES)], row[len(EPOCH_FIGURES) :]

    def begin_update(self, position: Position) -> None:
        """Note where in the data the next update begins."""
        self.begun.append(dataclasses.replace(position))

    def place_of(self, update: int | None) -> Position | None:
        """Where that update began (None: the latest), or the earliest known one after it."""
        latest = [self.begun[-1]] if self.begun else []
        known = latest if update is None else [at for at in self.begun if at.update >= update]
        return known[0] if known else None

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as spent on waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def guarded(self, loss: Tensor) -> Tensor:
        """The loss; where it is not finite, or training has diverged, with gradients that are NaN.

        A NaN on one process reaches all of them with the averaged gradients, so all skip the
        update without asking each other, and no host waits for its device.
        """
        healthy = loss.isfinite() & (self.row[0] < self.max_skipped)
        return loss * torch.where(healthy, 1.0, math.nan)

    def add(self, update: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Count an update; its figures stay on the device."""
        self.latest = torch.stack((loss.detach(), grad_norm.detach())).to(self.sums)
        finite_loss, finite_norm = self.latest.isfinite()
        skipped, first, adjustments = self.row
        good = finite_loss & finite_norm
        adjusted = finite_loss & ~finite_norm & (adjustments < _MOST_ADJUSTMENTS) & self.scales
        bad = ~good & ~adjusted
        figures = torch.where(good, self.latest, 0.0)
        counts = torch.stack((good, bad, adjusted)).to(self.sums)
        self.sums = self.sums + torch.cat((figures, counts))
        first = torch.where(bad & (skipped == 0), float(update), first)
        skipped = torch.where(good, 0.0, skipped + bad)
        adjustments = torch.where(good, 0.0, adjustments + adjusted)
        self.row = torch.stack((skipped, first, adjustments))
        self.num_updates += 1
        now = time.perf_counter()
        self.update_time, self.previous = now - self.previous, now

    def require_finite(self) -> None:
        """DivergenceError where too many in a row were skipped; call it in all processes."""
        skipped, first, _ = (largest_over_processes(int(value), self.device) for value in self.row)
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
    """Most memory used so far in MiB: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # Linux: getrusage's figure begins with the memory of the process that started this one
        words = Path("/proc/self/status").read_text(encoding="utf-8").split()
        return int(words[words.index("VmHWM:") + 1]) / 2**10
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
