"""Measuring in turn: each side in a process of its own, A B A B, and the spread of their ratio."""

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
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from logger import progress_bar
from utils.memory import HUGE_PAGES, keep_freed_memory

WARM_UP = 2  # untimed calls: memory is claimed, kernels are chosen or compiled


Figures = dict[str, Any]  # what a side tells, by name


@dataclass(frozen=True)
class Work:
    """What a side repeats, and what it tells besides its time."""

    run: Callable[[], None]
    figures: Callable[[], Figures] = dict


class Side:
    """A process that builds its work once and then does it whenever it is told to.

    `make(*arguments)` builds it there. `as_here` gives the process this project's settings of
    memory; others run as they come. ValueError where the work cannot be built or done.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Work],
        arguments: Sequence[object],
        as_here: bool = True,
    ) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make, arguments, as_here))
        setting = None if as_here else os.environ.pop(HUGE_PAGES, None)
        self.process.start()
        if setting is not None:
            os.environ[HUGE_PAGES] = setting
        other.close()

    def seconds(self) -> float:
        """Do the work once."""
        return float(self._ask("run"))

    def figures(self) -> Figures:
        """What it tells besides its time."""
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
    connection: Connection, make: Callable[..., Work], arguments: Sequence[object], as_here: bool
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    if as_here:
        keep_freed_memory()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the main process wants no more
        _answer(connection, make, arguments)
    if distributed.is_initialized():
        os._exit(0)  # gloo's threads can abort a process that tidies up


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


def in_turn(sides: Sequence[Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in each round: A B A B ..."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:  # one after the other: what is built beside a running side disturbs it
        side.seconds()
    for _ in progress_bar(range(rounds), name="rounds", rank=launched_rank()):
        for side in sides:
            times[side.name].append(side.seconds())
    return times


def ratio(times: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast the first side is as the second, round by round."""
    first, second = times.values()
    ratios = sorted(other / one for one, other in zip(first, second, strict=True))
    return {"median": statistics.median(ratios), "smallest": ratios[0], "largest": ratios[-1]}


def launched_rank() -> int:
    """Index of this process by the launcher's environment; 0 without one."""
    return int(os.environ.get("RANK", 0))


def launched_processes() -> int:
    """Number of processes by the launcher's environment; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


def machine(device: torch.device) -> dict[str, object]:
    """Hardware and versions that a measurement belongs to."""
    packages = ("torch", "torchvision", "timm", "transformers", "pillow", "simplejpeg")
    return {
        "argv": sys.argv[1:],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": launched_processes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
