"""Figures of an epoch that are read from the system."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.support.small_runs import ROOT
from utils.training.metrics import peak_memory_mb

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
