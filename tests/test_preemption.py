"""Signals, restarts, other numbers of processes, folders in use, lost processes: with real ones."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from data.samples import EpochSampler, epoch_order
from tests.kills import (
    Scenario,
    children_of,
    finish,
    free_port,
    is_alive,
    join,
    launch,
    require_gone,
    results_of,
)
from tests.small_runs import ROOT, equal, metrics_of, run_folder, write_config

ALONE = Scenario("pretrain", 1, 1, "float32", 0)
PAIR = Scenario("pretrain", 2, 1, "float32", 0)
LONG = ("TRAIN.EPOCHS", 2000, "SAVE_UPDATES", 0)


@pytest.fixture
def running() -> Iterator[list[BaseProcess]]:
    """Processes that must not outlive a test."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


def wait_for(what: Callable[[], Any], seconds: float = 40.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def has_trained(output: Path, lines: int = 3) -> bool:
    """Whether so many updates were logged."""
    path = run_folder(output) / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= lines


def said(output: Path) -> str:
    """What the processes of a run have said."""
    return output.with_suffix(".log").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("scenario", [ALONE, PAIR], ids=["one process", "two processes"])
def test_a_signal_saves_at_the_next_update_and_the_run_goes_on_from_there(
    tmp_path: Path, running: list[BaseProcess], scenario: Scenario, name: str
) -> None:
    cfg, output, whole = write_config(tmp_path), tmp_path / "stopped", tmp_path / "whole"
    short = ("SAVE_UPDATES", 0, "TRAIN.EPOCHS", 3, "DATA.NUM_SHAPES", 160)
    running += launch(scenario, cfg, output, *short)
    wait_for(lambda: has_trained(output))
    os.kill(running[-1].pid or 0, signal.Signals[name])  # the last process alone
    assert join(running, 20) == [75] * scenario.processes
    found = re.search(r"stopped after update (\d+) by (\w+|a signal to another)", said(output))
    assert found
    last = metrics_of(output)[-1]["update"] + 1
    assert int(found[1]) == last
    assert list(run_folder(output).glob(f"ckpt_epoch_*_update_{last}.pth"))
    finish(scenario, cfg, output, *short)
    finish(scenario, cfg, whole, *short)
    assert equal(results_of(output, "pretrain"), results_of(whole, "pretrain"))


def test_torchrun_restarts_a_group_that_has_lost_a_process(tmp_path: Path) -> None:
    cfg, output, whole = write_config(tmp_path), tmp_path / "killed", tmp_path / "whole"
    finish(PAIR, cfg, whole, "TRAIN.EPOCHS", 3, "DATA.NUM_SHAPES", 160)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    command += ["--nproc_per_node", "2", "main_simmim.py", "--cfg", str(cfg)]
    command += ["--output", str(output), "--opts", *PAIR.opts, "DATA.NUM_SHAPES", "160"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said", "w") as file:
        agent = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        wait_for(lambda: has_trained(output))
        workers = children_of({agent.pid})
        os.kill(max(workers), signal.SIGKILL)
        assert agent.wait(120) == 0, (tmp_path / "said").read_text()[-3000:]
        require_gone(workers)
    finally:
        agent.kill()
    assert "resumed from" in (tmp_path / "said").read_text()
    assert equal(results_of(output, "pretrain"), results_of(whole, "pretrain"))


def test_processes_do_not_outlive_torchrun(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += ["2", "main_simmim.py", "--cfg", str(write_config(tmp_path)), "--output"]
    command += [str(output), "--opts", *PAIR.opts, *map(str, LONG), "DATA.NUM_WORKERS", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: has_trained(output))
        family = children_of({agent.pid})
        family |= children_of(family)
    finally:
        agent.kill()
    agent.wait()
    assert len(family) >= 4
    require_gone(family)
    assert list(run_folder(output).glob("ckpt_epoch_*_update_*.pth"))


def test_other_numbers_of_processes_go_on_with_the_rest_of_the_epoch(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    cfg, output = write_config(tmp_path), tmp_path / "out"
    opts = ("DATA.NUM_SHAPES", 400, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    running += launch(PAIR, cfg, output, *opts)
    wait_for(lambda: has_trained(output))
    os.kill(running[0].pid or 0, signal.SIGTERM)
    assert join(running, 20) == [75, 75]
    done = len(metrics_of(output))
    finish(ALONE, cfg, output, *opts)
    lines = metrics_of(output)
    assert len(lines) == done + (400 - 8 * done) // 4
    assert [line["update"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["index"] == 99
    assert lines[-1]["lr"] < lines[0]["lr"] / 20  # the schedule ended with the epoch
    assert "an update is now 4 images and an epoch 100 updates" in said(output)


def test_what_all_processes_have_seen_is_a_beginning_of_the_epochs_order() -> None:
    """Three processes, then two, then one: each sample once, in the order of the epoch."""
    order = epoch_order(101, seed=3, epoch=5).tolist()
    seen: list[int] = []
    for processes, rounds in ((3, 7), (2, 11), (1, 58)):
        shares = []
        for rank in range(processes):
            sampler = EpochSampler(101, processes, rank, seed=3)
            sampler.set_position(5, len(seen))
            assert len(sampler) == (101 - len(seen)) // processes
            shares.append([index for _, index in sampler][:rounds])
        seen += [share[turn] for turn in range(rounds) for share in shares]
    assert seen == order


def test_a_folder_belongs_to_one_run_as_long_as_that_lives(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    cfg, output = write_config(tmp_path), tmp_path / "out"
    running += launch(ALONE, cfg, output, *LONG, "DATA.NUM_WORKERS", 2)
    wait_for(lambda: has_trained(output))
    workers = children_of({running[0].pid or 0})
    assert len(workers) == 2
    second = launch(ALONE, cfg, output, *LONG)
    running += second
    assert join(second, 30) == [2]
    assert re.search(
        rf"\nerror: output folder \S+ is in use by process {running[0].pid} on \S+: stop that run, "
        "or give another --tag or --output\n",
        said(output),
    )
    assert running[0].is_alive()
    running[0].kill()
    finish(ALONE, cfg, output, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)  # at once
    require_gone(workers)


def test_a_dead_process_is_named_by_the_others(tmp_path: Path, running: list[BaseProcess]) -> None:
    output = tmp_path / "out"
    running += launch(PAIR, write_config(tmp_path), output, *LONG)
    wait_for(lambda: has_trained(output))
    running[1].kill()
    assert join(running, 20) == [3, -signal.SIGKILL]
    assert "rank 0: error: rank 1 gave no sign of life for 4 s: dead or stopped" in said(output)
    assert "the same command goes on from the newest checkpoint" in said(output)


def test_a_stopped_process_is_named_within_the_configured_time(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    output = tmp_path / "out"
    running += launch(PAIR, write_config(tmp_path), output, *LONG, "TRAIN.LOST_AFTER", 6)
    wait_for(lambda: has_trained(output))
    os.kill(running[0].pid or 0, signal.SIGSTOP)  # the one that has the store
    assert join(running[1:], 20) == [3]
    assert re.search(r"rank 1: error: (rank 0 gave no sign|the launcher's store)", said(output))


def test_a_process_that_waits_for_data_is_named_by_itself_and_the_others(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    output = tmp_path / "out"
    opts = (*LONG, "TRAIN.LOST_AFTER", 6, "DATA.NUM_WORKERS", 1)
    running += launch(PAIR, write_config(tmp_path), output, *opts)
    wait_for(lambda: has_trained(output))
    (worker,) = children_of({running[1].pid or 0})
    os.kill(worker, signal.SIGSTOP)
    assert join(running, 30) == [3, 3]
    require_gone({worker})
    assert not is_alive(worker)
    for rank in (0, 1):
        assert f"rank {rank}: error: rank 1 did not get on while the others waited" in said(output)


def test_a_lost_machine_leaves_a_run_of_fewer_processes(tmp_path: Path) -> None:
    """Two torchruns, as on two machines; one is killed, the other goes on alone."""
    cfg, output = write_config(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"]
    command += ["--nproc_per_node", "1", "--max-restarts", "3", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", f"localhost:{free_port()}", "--rdzv_id", "lost"]
    command += ["main_simmim.py", "--cfg", str(cfg), "--output", str(output), "--opts"]
    command += ["TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "DATA.NUM_SHAPES", "2400"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    machines = []
    with open(tmp_path / "said", "w") as file:
        for _ in range(2):
            machines.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
            )
            time.sleep(1)  # the first holds the rendezvous
    try:
        wait_for(lambda: has_trained(output, lines=20))
        machines[1].kill()
        assert machines[0].wait(120) == 0, (tmp_path / "said").read_text()[-3000:]
    finally:
        for machine in machines:
            machine.kill()
    text = (tmp_path / "said").read_text()
    assert "2 process(es), this one on cpu" in text
    assert "1 process(es), this one on cpu" in text
    lines = metrics_of(output)
    two = [line for line in lines if line["num_updates"] == 300]
    assert len(lines) == len(two) + (2400 - 8 * len(two)) // 4
