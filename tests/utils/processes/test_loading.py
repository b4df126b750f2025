"""Loaders that fail for lack of memory, shared memory or open files: one line says what helps."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.support.kills import Scenario, children_of, forked, join, launch
from tests.support.long_runs import LONG, has_trained, said, wait_for
from tests.support.small_runs import ROOT, write_config
from utils.processes.exit_status import run_program
from utils.processes.loading import shortage

FEWER = "give fewer DATA.NUM_WORKERS (--opts), a smaller --batch-size or more"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_that_is_killed_ends_the_run_in_one_line(tmp_path: Path, processes: int) -> None:
    output, scenario = tmp_path / "out", Scenario("pretrain", processes, 1, "float32", 2)
    running = launch(scenario, write_config(tmp_path), output, *LONG, "SAVE_UPDATES", 3)
    try:
        wait_for(lambda: has_trained(output, 12))
        os.kill(min(children_of({running[-1].pid or 0})), signal.SIGKILL)
        statuses = join(running, 30)
    finally:
        for process in running:
            process.kill()
    text = said(output)
    assert statuses == [3, 2][-processes:], text
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == processes, lines
    (line,) = [line for line in lines if "loader's worker" in line]
    begin = "rank 1: " * (processes == 2) + "error: a loader's worker has died, most often because "
    assert line.startswith(f"{begin}memory is short: {FEWER} memory (")
    assert "the same command goes on from" in line


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and util-linux"
)
def test_shared_memory_that_is_full_is_named(tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    command = [
        sys.executable,
        "main_simmim.py",
        "--cfg",
        str(cfg),
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--opts", "DATA.NUM_WORKERS", "2", "DATA.BATCH_SIZE", "8"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{small} || exit 77; exec "$@"', "sh", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("no mounts here")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "rror" in line]
    assert line.startswith(f"error: shared memory (/dev/shm) is short: {FEWER} of it (docker run")
    assert line.endswith("nothing is saved yet: the same command begins again")
    assert "Traceback" not in done.stderr


class Samples(Dataset[object]):
    """Eight samples, each of which a function makes."""

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> object:
        return self.make()


def out_of_memory() -> None:
    raise MemoryError


def allocates() -> Tensor:
    return torch.empty(10**14)


def crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def overruns() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def breaks() -> None:
    raise RuntimeError("a mistake of the programmer")


def cannot_read() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "picture.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (out_of_memory, f"memory is short: {FEWER} memory (MemoryError)"),
        (allocates, f"memory is short: {FEWER} memory (RuntimeError: "),
        (crashes, "a loader's worker has crashed: --opts DATA.NUM_WORKERS 0 shows where ("),
        (overruns, f"shared memory (/dev/shm) is short: {FEWER} of it (docker run "),
        (breaks, ""),
        (cannot_read, ""),
    ],
)
def test_what_ended_a_worker_is_told(make: Callable[[], object], expected: str) -> None:
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        list(DataLoader(Samples(make), num_workers=1))
    words = shortage(caught.value)
    assert words.startswith(expected)
    assert bool(words) == bool(expected)


@pytest.mark.slow
def test_a_crash_is_told_where_torch_notices_only_that_a_worker_is_gone() -> None:
    """Two ways lead to the error, and either may be first: a signal, and a look at the workers."""
    batches = iter(DataLoader(Samples(crashes), num_workers=1))
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with pytest.raises(RuntimeError, match="exited unexpectedly") as caught:
            next(batches)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert shortage(caught.value).startswith("a loader's worker has crashed: --opts")


def told(make: Callable[[], object], log: Path) -> None:
    """A program that fails; what it says goes to a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)

    def main() -> None:
        make()

    run_program(main)


@pytest.mark.slow
@pytest.mark.parametrize("make", [out_of_memory, allocates])
def test_memory_that_is_short_ends_a_program_in_one_line(
    tmp_path: Path, make: Callable[[], object]
) -> None:
    process = forked().Process(target=told, args=(make, tmp_path / "log"))
    process.start()
    assert join([process], 60) == [2]
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith(f"error: memory is short: {FEWER} memory (")
    assert line.endswith("; start the same command again")
