"""Long runs in processes of their own: a test starts them, watches them and ends them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.small_runs import ROOT, run_folder, write_config

LONG = ("TRAIN.EPOCHS", 2000, "SAVE_UPDATES", 0)


def wait_for(what: Callable[[], Any], seconds: float = 40.0, pause: float = 0.01) -> None:
    """Wait until something is true; look at it again after each `pause` seconds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(pause)


def has_trained(output: Path, lines: int = 3, tag: str = "tiny") -> bool:
    """Whether so many updates were logged."""
    path = run_folder(output, tag) / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= lines


def said(output: Path) -> str:
    """What the processes of a run have said."""
    return output.with_suffix(".log").read_text()


@contextlib.contextmanager
def program(
    folder: Path, output: Path, *opts: str, before: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A long run as the first process of its group; what it says is in OUTPUT.log."""
    command = [*before, sys.executable, "main_simmim.py", "--cfg", str(write_config(folder))]
    command += ["--output", str(output), "--opts", *map(str, LONG), *opts]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(output.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
