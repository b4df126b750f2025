"""Runs that are killed at random moments, started again, and compared with runs that were not.

python -m tests.support.kills [--kills 200] [--seed 0]
"""

import argparse
import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.support.small_runs import (
    equal,
    metrics_of,
    run_folder,
    write_config,
    write_finetune_config,
)

PROGRAMS = {"pretrain": "main_simmim", "finetune": "main_finetune"}
ENDED = (0, -signal.SIGKILL)
_TIMED = ("time", "time_mean", "images_per_second", "data_wait", "memory_mb")
_START_SECONDS = 60.0
_LOST_SECONDS = 90.0


@dataclass(frozen=True)
class Scenario:
    """A kind of run."""

    stage: str
    processes: int
    accumulation: int
    precision: str
    workers: int

    @property
    def opts(self) -> list[str]:
        """Its configuration: it saves after every update, three epochs of eight or four."""
        values = {
            "TRAIN.ACCUMULATION_STEPS": self.accumulation,
            "TRAIN.PRECISION": self.precision,
            "DATA.NUM_WORKERS": self.workers,
            "DATA.NUM_SHAPES": 32 * self.processes * self.accumulation,
            "DATA.NUM_VAL_SHAPES": 20,
            "TRAIN.EPOCHS": 3,
            "TRAIN.EMA_DECAY": 0.9 if self.stage == "finetune" else 0.0,
            "TRAIN.LOST_AFTER": 15,
            "SAVE_UPDATES": 1,
            "KEEP_LAST": 2,
        }
        return [str(word) for pair in values.items() for word in pair]


SCENARIOS = (
    Scenario("pretrain", 1, 1, "float32", 0),
    Scenario("pretrain", 1, 2, "bfloat16", 2),
    Scenario("pretrain", 2, 1, "bfloat16", 0),
    Scenario("pretrain", 2, 2, "float32", 2),
    Scenario("finetune", 1, 1, "bfloat16", 2),
    Scenario("finetune", 1, 2, "float32", 0),
    Scenario("finetune", 2, 1, "float32", 0),
    Scenario("finetune", 2, 2, "bfloat16", 2),
)


def forked() -> Any:
    """Processes that have imported everything and done nothing: a run then starts in no time."""
    context = multiprocessing.get_context("forkserver")
    more = ("utils.processes.exit_status", "tools.benchmark.__main__", "torch.utils.tensorboard")
    context.set_forkserver_preload([*PROGRAMS.values(), *more])
    return context


def work(program: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    """What a process of a run does: the program, from its command line to its exit status."""
    os.environ.update(environment | {"OMP_NUM_THREADS": "1"})
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loaders, as in a program of its own
    from utils.processes.exit_status import run_program

    for name, seconds in SLOW.items():
        if name in os.environ:
            slow_down(*seconds, float(os.environ[name]))
    sys.argv = [f"{program}.py", *arguments]
    run_program(__import__(program).main, resumes=True)


# What can take longer than it does here: its name for `launch`, the function, and where that is.
SLOW = {
    "flush": ("os", "fsync"),
    "listing": ("data.build", "Shapes"),
    "picture": ("data.sources", "draw_shape"),
}


def slow_down(module: str, name: str, seconds: float) -> None:
    """Have each call of a function take so many seconds longer from now on."""
    place = importlib.import_module(module)
    function = getattr(place, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments)

    setattr(place, name, slow)


def free_port() -> str:
    """A port that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(
    scenario: Scenario, cfg: Path, output: Path, *opts: Any, slow: tuple[str, float] | None = None
) -> list[BaseProcess]:
    """Start all processes of a run; what they say is in OUTPUT.log.

    `slow`: what of `SLOW` takes so many seconds longer.
    """
    arguments = ["--cfg", str(cfg), "--output", str(output), "--opts", *scenario.opts]
    arguments += map(str, opts)
    port = free_port()
    processes = []
    for rank in range(scenario.processes):
        environment = {slow[0]: str(slow[1])} if slow else {}
        if scenario.processes > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank)}
            environment |= {"WORLD_SIZE": str(scenario.processes), "LOCAL_RANK": str(rank)}
        log = str(output.with_suffix(".log"))
        task = (PROGRAMS[scenario.stage], arguments, environment, log)
        processes.append(forked().Process(target=work, args=task))
    for process in processes:
        process.start()
    return processes


def join(processes: list[BaseProcess], seconds: float) -> list[int | None]:
    """Wait for all; their exit statuses, None where one has not ended in that time."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    return [process.exitcode for process in processes]


def children_of(parents: set[int]) -> set[int]:
    """Processes that these have started: loaders' workers."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in parents:
            found.add(int(status.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs: not gone, and not only waiting to be counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def require_gone(pids: set[int], seconds: float = 10.0) -> None:
    """AssertionError where a process outlives those that started it."""
    end = time.monotonic() + seconds
    while left := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() < end, f"processes {left} outlive their parents"
        time.sleep(0.05)


def kill_once(processes: list[BaseProcess], output: Path, dice: random.Random) -> str:
    """Kill a run at a random moment; what was hit: nothing where it had ended before.

    A moment of its start, of its training, or just when a checkpoint is being written. All
    processes, or one of two: then the other must notice and end.
    """
    files = output / "pretrain" / "tiny", output / "finetune" / "tiny"
    moment = dice.choices(("start", "training", "writing"), (1, 4, 4))[0]
    before = sum(path.stat().st_size for folder in files for path in folder.glob("metrics.jsonl"))
    begun, end = time.monotonic(), time.monotonic() + _START_SECONDS

    def is_training() -> bool:
        now = [path.stat().st_size for folder in files for path in folder.glob("metrics.jsonl")]
        return sum(now) != before

    def is_writing() -> bool:
        own = [f".*.{process.pid}.tmp" for process in processes]
        return any(True for folder in files for name in own for _ in folder.glob(name))

    reached = {"start": lambda: True, "training": is_training, "writing": is_writing}[moment]

    def alive() -> bool:
        return all(process.is_alive() for process in processes)

    while alive() and not reached():
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.001)
    time.sleep({"start": 1.5, "training": 0.8, "writing": 0.02}[moment] * dice.random())
    victims = processes if dice.random() < 0.7 else [dice.choice(processes)]
    was_alive = alive()
    pids = {process.pid for process in processes if process.pid}
    workers = children_of(pids)
    for process in victims:
        process.kill()
    statuses = join(processes, _LOST_SECONDS)
    assert None not in statuses, f"a process waits for ever: {statuses}"
    require_gone(workers)
    left = "all" if len(victims) == len(processes) else "one"
    hit = f"{moment}, {left} of {len(processes)}, after {time.monotonic() - begun:.1f} s"
    return hit if was_alive else ""


def finish(scenario: Scenario, cfg: Path, output: Path, *opts: Any) -> None:
    """Run to the end."""
    statuses = join(processes := launch(scenario, cfg, output, *opts), 60)
    for process in processes:
        process.kill()
    log = output.with_suffix(".log").read_text()[-2000:]
    assert statuses == [0] * scenario.processes, f"{scenario}: {statuses}\n{log}"


def results_of(output: Path, stage: str) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Last checkpoint, best one, and all that was logged but times and memory."""
    folder = run_folder(output, name=stage)
    names = ["ckpt_epoch_2.pth"] + ["best.pth"] * (stage == "finetune")
    states = [torch.load(folder / name, weights_only=True) for name in names]
    for state in states:
        del state["config"]["OUTPUT"]  # all that may differ
    lines = [
        {name: value for name, value in line.items() if name not in _TIMED}
        for line in metrics_of(output, name=stage)
    ]
    return states[0], states[-1], lines


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested states differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = {**one, **other}
        parts = [(one.get(name), other.get(name), f"{place}/{name}") for name in names]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        parts = [(*pair, f"{place}/{index}") for index, pair in pairs]
    else:
        return [] if equal(one, other) else [f"{place}: {one!s:.80} and {other!s:.80}"]
    return [found for part in parts for found in differences(*part)]


def survive(scenario: Scenario, kills: int, dice: random.Random, folder: Path) -> list[str]:
    """Kill a run so often, let it end, and compare it with one that was left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write = write_config if scenario.stage == "pretrain" else write_finetune_config
    cfg = write(folder)
    whole, killed = folder / "whole", folder / "killed"
    finish(scenario, cfg, whole)
    expected = results_of(whole, scenario.stage)
    hits: list[str] = []
    for attempt in range(10 * kills):
        if len(hits) == kills:
            break
        if hit := kill_once(launch(scenario, cfg, killed), killed, dice):
            hits.append(hit)
        else:  # it had come to its end: begin again
            require_same(scenario, cfg, killed, expected, hits)
            killed = folder / f"killed{attempt}"
    assert len(hits) == kills
    require_same(scenario, cfg, killed, expected, hits)
    return hits


def require_same(
    scenario: Scenario, cfg: Path, output: Path, expected: Any, hits: list[str]
) -> None:
    """Let a run come to its end; AssertionError where that is another one than expected."""
    finish(scenario, cfg, output)
    found = results_of(output, scenario.stage)
    for name, one, other in zip(("last checkpoint", "best", "log"), found, expected, strict=True):
        where = differences(one, other)
        assert equal(one, other), f"{scenario}, {name} differs: {where}, after kills: {hits}"


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Kill runs of all kinds; one line for each."""
    arguments = read_arguments()
    survived: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for index, scenario in enumerate(SCENARIOS):
            number = len(range(index, arguments.kills, len(SCENARIOS)))
            dice = random.Random(f"{arguments.seed} {index}")
            hits = survive(scenario, number, dice, Path(folder, str(index)))
            survived += hits
            print(json.dumps({"scenario": scenario.__dict__, "kills": hits}), flush=True)
    writing = sum("writing" in hit for hit in survived)
    print(f"seed {arguments.seed}: {len(survived)} kills, {writing} while writing, losses: 0")


if __name__ == "__main__":
    main()
