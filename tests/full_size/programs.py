"""The programs at published size, as a user starts them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.small_runs import ROOT

PRETRAIN = "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml"
FINETUNE = "configs/swin_base__100ep/simmim_finetune__swin_base__img192_window6__100ep.yaml"
SHAPES = ["DATA.DATASET", "shapes", "DATA.NUM_SHAPES", 8, "DATA.NUM_WORKERS", 0]
SHAPES += ["TRAIN.WARMUP_EPOCHS", 0, "PICTURE_FREQ", 0]
# Matrix products of the same sizes are then added up in the same order.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "2"}


def start(*words: Any) -> subprocess.Popen[str]:
    """A program of this project, with everything it says in one stream."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*words: Any, status: int = 0) -> str:
    """What a program says; it must end with `status`."""
    process = start(*words)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == status, said
    return said


def run_until(line: str, number: signal.Signals, *words: Any) -> tuple[int, str]:
    """Status and words of a program that gets a signal when it has said a line."""
    process = start(*words)
    assert process.stdout is not None
    said = ""
    for heard in process.stdout:
        said += heard
        if line in heard:
            process.send_signal(number)
            break
    said += process.stdout.read()
    return process.wait(), said


def pretrain(output: Path, tag: str, *opts: Any) -> list[Any]:
    """The command that pre-trains Swin-B on a few drawings."""
    words = ["main_simmim.py", "--cfg", PRETRAIN, "--device", "cpu", "--batch-size", 4]
    return [*words, "--output", output, "--tag", tag, "--opts", *SHAPES, *opts]
