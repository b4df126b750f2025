"""Running figures of an epoch, kept on the device until somebody looks."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.distributed import mean_over_processes


class EpochMetrics:
    """Loss, gradient norm and times of the updates of one epoch, over all processes."""

    def __init__(self, device: torch.device, images_per_update: int) -> None:
        self.device = device
        self.images_per_update = images_per_update
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, gradient norm
        self.latest = self.sums
        self.num_updates = 0
        self.waited = 0.0
        self.start = self.previous = time.perf_counter()
        self.update_time = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as spent on waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Count one update; its figures stay on the device."""
        self.latest = torch.stack((loss.detach(), grad_norm.detach())).to(self.sums)
        self.sums = self.sums + self.latest
        self.num_updates += 1
        now = time.perf_counter()
        self.update_time, self.previous = now - self.previous, now

    def summary(self) -> dict[str, Any]:
        """Figures of the latest update and means since the start; call it in all processes.

        ValueError where the loss has become infinite or no number.
        """
        figures = torch.cat((self.latest, self.sums / max(self.num_updates, 1)))
        loss, grad_norm, loss_mean, grad_norm_mean = mean_over_processes(figures).tolist()
        if not math.isfinite(loss_mean):
            raise ValueError(
                f"the loss became {loss_mean} in this epoch: training has diverged and stops; "
                "checkpoints of earlier epochs are whole (try a lower TRAIN.BASE_LR)"
            )
        elapsed = max(time.perf_counter() - self.start, 1e-9)
        return {
            "loss": loss,
            "loss_mean": loss_mean,
            "grad_norm": grad_norm,
            "grad_norm_mean": grad_norm_mean,
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
