"""Figures of an epoch: those read from the system, and those of several processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.pairs import told_by
from tests.support.small_runs import ROOT
from utils.training.metrics import TrainingMetrics, peak_memory_mb

pytestmark = pytest.mark.slow  # all start processes

PROGRAM = """
import torch
from utils.training.metrics import peak_memory_mb
print(peak_memory_mb(torch.device("cpu")))
"""


def test_peak_memory_is_that_of_this_process_and_not_of_the_one_that_started_it() -> None:
    device = torch.device("cpu")
    before = peak_memory_mb(device)
    ballast = np.ones(2**30, dtype=np.uint8)  # 1 GiB
    assert peak_memory_mb(device) >= max(before, ballast.nbytes / 2**20)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < peak_memory_mb(device) - 512


def add_scaled(rank: int, folder: Path) -> object:
    """Three updates in float16: the loss of one process is not finite, a gradient is, none is."""
    metrics = TrainingMetrics(torch.device("cpu"), 4, max_skipped=9, scales=True)
    losses = [torch.tensor(float("nan") if rank else 1.0), torch.tensor(1.0), torch.tensor(1.0)]
    norms = [float("nan"), float("inf"), 1.0]
    for update, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        metrics.add(update, loss, torch.tensor(norm))
    return metrics.sums[2:].tolist()


def test_all_processes_count_an_update_alike_where_the_loss_of_one_is_not_finite(
    tmp_path: Path,
) -> None:
    """Good, skipped and with another scale: one of each."""
    assert told_by(2, tmp_path, add_scaled) == ["[1.0, 1.0, 1.0]"] * 2
