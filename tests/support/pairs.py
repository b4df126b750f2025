"""Two processes of one run by hand, each with its own command line and environment."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.support.kills import forked, free_port, join, work
from tests.support.small_runs import ROOT
from utils.processes import heartbeat
from utils.processes.group import CommonError, barrier, start_process_group


def place_of(rank: int, port: str, size: int = 2) -> dict[str, str]:
    """The variables by which a process finds the others."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}


def start_pair(
    folder: Path,
    commands: Sequence[Sequence[Any]],
    program: str = "main_simmim",
    environments: Sequence[Mapping[str, str]] = (),
) -> list[BaseProcess]:
    """Start a process with each command line, of any number; what process N says is in N.log."""
    port, size = free_port(), len(commands)
    processes = []
    for rank, (words, own) in enumerate(zip(commands, environments or [{}] * size, strict=True)):
        place = place_of(rank, port, size) | dict(own)
        task = (program, [str(word) for word in words], place, str(folder / f"{rank}.log"))
        processes.append(forked().Process(target=work, args=task))
    for process in processes:
        process.start()
    return processes


def run_processes(
    number: int, cfg: Path, *arguments: Any, program: str = "main_simmim"
) -> tuple[list[int | None], str]:
    """A run of processes numbered by hand; their exit statuses, and what all of them said.

    They are there in no time, while torchrun and what it starts import everything anew.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, command = Path(name), ["--cfg", cfg, *arguments]
        processes = start_pair(folder, [command] * number, program)
        statuses = join(processes, 120)
        for process in processes:
            process.kill()
        return statuses, "".join((folder / f"{rank}.log").read_text() for rank in range(number))


SHORTEST = 8.0  # seconds to find each other, or without progress; 10 s more end a collective


def told_by(number: int, folder: Path, act: Callable[[int, Path], object]) -> list[str]:
    """What `act(rank, folder)` returns in each process of a group, or the error that all raise."""
    port = free_port()
    processes: list[BaseProcess] = [
        forked().Process(target=_meet, args=(rank, port, number, folder, act))
        for rank in range(number)
    ]
    for process in processes:
        process.start()
    assert join(processes, 60) == [0] * number
    return [(folder / str(rank)).read_text() for rank in range(number)]


def _meet(
    rank: int, port: str, size: int, folder: Path, act: Callable[[int, Path], object]
) -> None:
    os.environ.update(place_of(rank, port, size) | {"OMP_NUM_THREADS": "1"})
    start_process_group(torch.device("cpu"), SHORTEST)
    heartbeat.start(SHORTEST)
    try:
        (folder / str(rank)).write_text(str(act(rank, folder)))
    except CommonError as error:
        (folder / str(rank)).write_text(f"{error.rank} {error}")
    barrier()
    heartbeat.stop()
    barrier()
    os._exit(0)


def run_anew(number: int, program: str, *arguments: Any) -> tuple[list[int], str]:
    """A run of processes that import everything anew, as GPUs need; statuses and what they said."""
    port = free_port()
    with tempfile.TemporaryFile("w+") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, *program.split(), *map(str, arguments)],
                cwd=ROOT,
                env=os.environ | place_of(rank, port, number),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank in range(number)
        ]
        try:
            statuses = [process.wait(240) for process in processes]
        finally:
            for process in processes:
                process.kill()
        log.seek(0)
        return statuses, log.read()


def end_of_pair(
    folder: Path, processes: Sequence[BaseProcess], seconds: float = 40.0
) -> tuple[list[int | None], list[str]]:
    """Wait for a pair; its exit statuses and what each said last."""
    statuses = join(list(processes), seconds)
    for process in processes:
        process.kill()
    texts = [(folder / f"{rank}.log").read_text() for rank in range(len(processes))]
    return statuses, [text.strip().splitlines()[-1] if text.strip() else "" for text in texts]
