"""Measure sides in turn (A B A B), each in its own process; ratio of their times and its spread."""

import contextlib
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed

from logger import progress_bar
from utils.device import cpu_name, prepare_process
from utils.launch import read_launch
from utils.memory import HUGE_PAGES

START_METHOD = "spawn"  # each side imports torch anew, with its own environment
WARM_UP = 2  # untimed calls: memory is allocated, kernels are chosen or compiled


Figures = dict[str, Any]  # figures of a side, by name


@dataclass(frozen=True)
class Work:
    """The call that a side repeats, and the figures that it reports besides its time."""

    run: Callable[[], None]
    figures: Callable[[], Figures] = dict


class Side:
    """A process that builds its work once and repeats it on request.

    `make(*arguments)` builds the work there, after `prepare()`: by default this project's settings.
    Other processes have the system's. ValueError where the work cannot be built or done.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Work],
        arguments: Sequence[object],
        prepare: Callable[[], object] = prepare_process,
    ) -> None:
        self.name = name
        context: Any = multiprocessing.get_context(START_METHOD)
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make, arguments, prepare))
        here = prepare is prepare_process
        setting = None if here else os.environ.pop(HUGE_PAGES, None)
        self.process.start()
        if setting is not None:
            os.environ[HUGE_PAGES] = setting
        other.close()

    def seconds(self) -> float:
        """Do the work once and return its seconds."""
        return float(self._ask("run"))

    def figures(self) -> Figures:
        """Figures of the work besides its time."""
        return dict(self._ask("figures"))

    def _ask(self, request: str) -> Any:
        try:
            self.connection.send(request)
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise ValueError(
                f"the process of {self.name} ended with status {self.process.exitcode}; "
                "its last lines are above"
            ) from None
        if isinstance(answer, ValueError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(
    connection: Connection,
    make: Callable[..., Work],
    arguments: Sequence[object],
    prepare: Callable[[], object],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    prepare()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the main process has closed the pipe
        _answer(connection, make, arguments)
    if distributed.is_initialized():
        os._exit(0)  # gloo's threads can abort a regular exit


def _answer(connection: Connection, make: Callable[..., Work], arguments: Sequence[object]) -> None:
    work = None
    while True:
        request = connection.recv()
        try:
            if work is None:
                work = make(*arguments)
                for _ in range(WARM_UP):
                    work.run()
            if request == "figures":
                connection.send(work.figures())
                continue
            start = time.perf_counter()
            work.run()
            connection.send(time.perf_counter() - start)
        except ValueError as error:
            connection.send(ValueError(str(error)))


def as_it_comes() -> None:
    """Prepare nothing, for a side of another program."""


def without_denormals() -> None:
    """Only have numbers below 1e-38 become 0, for a side of another program."""
    torch.set_flush_denormal(True)


def in_turn(sides: Sequence[Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in each round: A B A B ..."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:  # build one at a time: building would disturb a running side
        side.seconds()
    for _ in progress_bar(range(rounds), name="rounds", rank=launched_rank()):
        for side in sides:
            times[side.name].append(side.seconds())
    return times


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Speed of the first side relative to the second: median and range over the rounds."""
    ratios = sorted(other / one for one, other in zip(first, second, strict=True))
    return {"median": statistics.median(ratios), "smallest": ratios[0], "largest": ratios[-1]}


def launched_rank() -> int:
    """Rank of this process from the launcher's environment; 0 without a launcher."""
    launch = read_launch()
    return launch.rank if launch else 0


def launched_processes() -> int:
    """Number of processes from the launcher's environment; 1 without a launcher."""
    launch = read_launch()
    return launch.size if launch else 1


def machine(device: torch.device) -> dict[str, object]:
    """Hardware and versions of a measurement."""
    packages = ("torch", "torchvision", "timm", "transformers", "pillow", "simplejpeg")
    return {
        "argv": sys.argv[1:],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": launched_processes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
