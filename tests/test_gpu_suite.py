"""The tests for a GPU are never taken for passed where there is none."""

import os
import subprocess
import sys

import pytest
import torch

from tests.support.accelerator import VARIABLE
from tests.support.small_runs import ROOT


def said_by(*words: str) -> str:
    """What a module of Python prints; it must end with status 0 or find no tests (5)."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == (5 if words[0] == "pytest" else 0), done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_ordinary_suite_leaves_them_out() -> None:
    last = said_by("pytest", "--collect-only", "-q", "tests/gpu").splitlines()[-1]
    assert last.startswith("no tests collected (")
    assert "deselected" in last


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which they run")
def test_without_a_gpu_one_line_says_that_they_are_skipped_and_why() -> None:
    (line,) = said_by("tests.gpu").splitlines()
    assert line.startswith(f"tests/gpu: skipped, torch {torch.__version__} finds no CUDA GPU here")
