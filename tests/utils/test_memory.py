"""Freed memory is used again: counted in page faults of a real process."""

import os
import subprocess
import sys

import pytest

from tests.support.small_runs import ROOT

pytestmark = pytest.mark.slow  # all start processes

# 131072 is what glibc starts with; later it raises both thresholds by what a program happens to
# free, so that without these two lines chance would decide what is given back.
COUNT_FAULTS = """
import ctypes, resource, statistics, sys
for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    ctypes.CDLL(None).mallopt(option, 131072)
from utils.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import torch

def faults_of_an_update():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**18) for _ in range(64)]  # 1 MiB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(5):
    faults_of_an_update()
print(int(statistics.median(faults_of_an_update() for _ in range(9))))
"""
PAGES = 64 * 2**20 // 4096


def faults_of_an_update(what: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, what],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_an_update_reuses_the_memory_of_the_one_before() -> None:
    assert faults_of_an_update("given back") > 0.9 * PAGES
    assert faults_of_an_update("kept") < 0.1 * PAGES


def test_settings_of_memory_in_the_environment_are_kept() -> None:
    words = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    assert faults_of_an_update("kept", **dict.fromkeys(words, "131072")) > 0.9 * PAGES
