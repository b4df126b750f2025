"""Signals, restarts, other numbers of processes, folders in use, lost processes: with real ones."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from data.samplers import EpochSampler, epoch_order
from tests.support.kills import (
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
from tests.support.long_runs import LONG, has_trained, program, said, wait_for
from tests.support.small_runs import (
    ROOT,
    equal,
    metrics_of,
    run_folder,
    write_config,
    write_finetune_config,
)
from utils.checkpoints.names import checkpoints_in

ALONE = Scenario("pretrain", 1, 1, "float32", 0)
PAIR = Scenario("pretrain", 2, 1, "float32", 0)
CLASSIFIER = Scenario("finetune", 1, 1, "float32", 0)
CLASSIFIERS = Scenario("finetune", 2, 1, "float32", 2)


@pytest.fixture
def running() -> Iterator[list[BaseProcess]]:
    """Processes that must not outlive a test."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


def stop_loader(process: BaseProcess, output: Path) -> int:
    """Have the only worker of a run that trains hang, and the run wait for it; its id."""
    wait_for(lambda: has_trained(output))
    (worker,) = children_of({process.pid or 0})
    os.kill(worker, signal.SIGSTOP)
    before = 0
    while before < (before := len(metrics_of(output))):  # what was loaded before
        time.sleep(1)
    return worker


def is_open(port: str) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as own:
        return own.connect_ex(("localhost", int(port))) == 0


def all_alive(processes: list[BaseProcess]) -> bool:
    return all(process.is_alive() for process in processes)


@pytest.mark.slow
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
    last = metrics_of(output)[-1]["update"] + 1
    (path,) = run_folder(output).glob(f"ckpt_epoch_*_update_{last}.pth")
    assert said(output).endswith(
        f"stopped after update {last} by {name}: the same command goes on from {path}\n"
    )
    finish(scenario, cfg, output, *short)
    finish(scenario, cfg, whole, *short)
    assert equal(results_of(output, "pretrain"), results_of(whole, "pretrain"))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [CLASSIFIER, CLASSIFIERS], ids=["one process", "two"])
def test_a_signal_in_a_validation_stops_it_and_the_run_that_goes_on_does_it(
    tmp_path: Path, running: list[BaseProcess], scenario: Scenario
) -> None:
    cfg, output, whole = write_finetune_config(tmp_path), tmp_path / "stopped", tmp_path / "whole"
    opts = ("SAVE_UPDATES", 0, "DATA.NUM_VAL_SHAPES", 1001, "DATA.BATCH_SIZE", 2)
    running += launch(scenario, cfg, output, *opts)
    wait_for(lambda: output.with_suffix(".log").exists() and "training takes" in said(output))
    os.kill(running[-1].pid or 0, signal.SIGTERM)
    assert join(running, 20) == [75] * scenario.processes
    lines = metrics_of(output, name="finetune")
    assert [line["update"] for line in lines] == list(range(16)), "the validation was not stopped"
    assert (run_folder(output, name="finetune") / "ckpt_epoch_0_update_16.pth").exists()
    finish(scenario, cfg, output, *opts)
    finish(scenario, cfg, whole, *opts)
    assert equal(results_of(output, "finetune"), results_of(whole, "finetune"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGHUP", 75)])
def test_what_a_terminal_sends_to_all_processes_saves_like_sigterm(
    tmp_path: Path, name: str, status: int
) -> None:
    output = tmp_path / "out"
    with program(tmp_path, output, "DATA.NUM_WORKERS", "2") as process:
        wait_for(lambda: has_trained(output))
        os.killpg(process.pid, signal.Signals[name])
        assert process.wait(30) == status
    assert list(run_folder(output).glob("ckpt_epoch_*_update_*.pth"))
    assert re.search(rf"stopped after update \d+ by {name}: the same command goes", said(output))


@pytest.mark.slow
def test_a_hangup_that_nohup_ignores_does_not_stop_a_run(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with program(tmp_path, output, before=("nohup",)) as process:
        wait_for(lambda: has_trained(output))
        before = len(metrics_of(output))
        os.killpg(process.pid, signal.SIGHUP)
        wait_for(lambda: has_trained(output, before + 20))
        process.terminate()
        assert process.wait(30) == 75
    assert "by SIGTERM" in said(output)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_before_training_begins_ends_the_program_in_one_line(
    tmp_path: Path, name: str, status: int
) -> None:
    output = tmp_path / "out"
    with program(tmp_path, output) as process:
        wait_for(lambda: catches(process.pid, signal.SIGTERM))
        os.kill(process.pid, signal.Signals[name])
        assert process.wait(30) == status
    assert said(output) == f"stopped by {name} before training began\n"
    assert not output.exists()


@pytest.mark.slow
def test_a_signal_ends_a_run_that_waits_for_data(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    output = tmp_path / "out"
    opts = (*LONG, "SAVE_UPDATES", 3, "DATA.NUM_WORKERS", 1)
    running += launch(ALONE, write_config(tmp_path), output, *opts)
    stop_loader(running[0], output)
    os.kill(running[0].pid or 0, signal.SIGTERM)
    assert join(running, 40) == [128 + signal.SIGTERM]
    (newest, *_) = checkpoints_in(run_folder(output))
    assert re.fullmatch(
        rf"ended by SIGTERM while no data came for \d+ s; the same command goes on from {newest}",
        said(output).splitlines()[-1],
    )


@pytest.mark.slow
def test_a_signal_waits_for_data_that_are_slow_but_come(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    """Longer than a run that is to stop waits for data of which it knows nothing."""
    output = tmp_path / "out"
    opts = (*LONG, "DATA.BATCH_SIZE", 1)
    running += launch(ALONE, write_config(tmp_path), output, *opts, slow=("picture", 12.5))
    wait_for(lambda: has_trained(output, lines=1))
    os.kill(running[0].pid or 0, signal.SIGTERM)
    assert join(running, 40) == [75]
    assert "by SIGTERM: the same command goes on from" in said(output)


@pytest.mark.slow
def test_finding_the_data_can_take_longer_than_the_time_after_which_a_process_is_lost(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    opts = ("TRAIN.LOST_AFTER", 5)
    running += launch(PAIR, write_config(tmp_path), tmp_path / "out", *opts, slow=("listing", 14.0))
    assert join(running, 60) == [0, 0]


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(tmp_path: Path, running: list[BaseProcess]) -> None:
    output = tmp_path / "out"
    running += launch(ALONE, write_config(tmp_path), output, *LONG, "DATA.NUM_WORKERS", 1)
    stop_loader(running[0], output)
    os.kill(running[0].pid or 0, signal.SIGTERM)
    os.kill(running[0].pid or 0, signal.SIGINT)  # the same wish, heard twice
    time.sleep(2.5)
    assert running[0].is_alive()
    os.kill(running[0].pid or 0, signal.SIGINT)
    assert join(running, 5) == [130]
    assert said(output).endswith(
        "ended by SIGINT, the second signal; nothing is saved yet: the same command begins again\n"
    )


@pytest.mark.slow
def test_all_processes_wait_for_a_file_however_long_it_takes(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    """Twice eight seconds for the file and its name, longer than anybody may be lost."""
    output = tmp_path / "out"
    opts = (*LONG, "TRAIN.LOST_AFTER", 4)
    running += launch(PAIR, write_config(tmp_path), output, *opts, slow=("flush", 8.0))
    wait_for(lambda: has_trained(output))
    os.kill(running[1].pid or 0, signal.SIGTERM)
    wait_for(lambda: checkpoints_in(run_folder(output)) or not all_alive(running))
    assert all_alive(running)
    assert join(running, 30) == [75, 75]
    assert "error" not in said(output)


@pytest.mark.slow
def test_torchrun_waits_for_a_rank_that_takes_long_to_save(tmp_path: Path) -> None:
    """Fifteen seconds, in which the other rank has nothing to do and may not be taken for lost."""
    cfg, output, whole = write_config(tmp_path), tmp_path / "stopped", tmp_path / "whole"
    short = ("SAVE_UPDATES", 0, "TRAIN.EPOCHS", 3, "DATA.NUM_SHAPES", 160)
    rank = "import os, sys; from tests.support.kills import work; slow = {'flush': '7.5'};"
    rank += "slow = slow if os.environ['RANK'] == '0' else {};"
    rank += "work('main_simmim', sys.argv[2:], slow, sys.argv[1])"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += ["2", "--no-python", sys.executable, "-c", rank, str(output.with_suffix(".log"))]
    command += ["--cfg", str(cfg), "--output", str(output), "--opts", *PAIR.opts]
    command += [*map(str, short), "TRAIN.LOST_AFTER", "4"]
    agent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: has_trained(output))
        workers, start = children_of({agent.pid}), time.monotonic()
        agent.terminate()
        agent.wait(60)
        assert time.monotonic() - start > 15
        require_gone(workers)
    finally:
        agent.kill()
    last = metrics_of(output)[-1]["update"] + 1
    (path,) = run_folder(output).glob(f"ckpt_epoch_*_update_{last}.pth")
    end = f"stopped after update {last} by SIGTERM: the same command goes on from {path}\n"
    assert said(output).endswith(end)
    finish(PAIR, cfg, output, *short)
    finish(PAIR, cfg, whole, *short)
    assert equal(results_of(output, "pretrain"), results_of(whole, "pretrain"))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_processes_do_not_outlive_a_torchrun_that_is_killed_while_they_start(
    tmp_path: Path, seconds: float
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += ["2", "main_simmim.py", "--cfg", str(write_config(tmp_path)), "--output"]
    command += [str(tmp_path / "out"), "--opts", *map(str, LONG)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: len(children_of({agent.pid})) == 2)
        time.sleep(seconds)
        family = children_of({agent.pid})
    finally:
        agent.kill()
    agent.wait()
    require_gone(family, 20)


@pytest.mark.slow
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


def test_processes_together_see_the_samples_in_the_order_of_the_epoch() -> None:
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


@pytest.mark.slow
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
        rf"\nerror: output folder \S+ is in use by 'process {running[0].pid} on \S+': stop that "
        r"run, or give another --tag or --output \(only where [^\n]*\)\n",
        said(output),
    )
    assert running[0].is_alive()
    running[0].kill()
    finish(ALONE, cfg, output, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)  # at once
    require_gone(workers)


@pytest.mark.slow
def test_a_dead_process_is_named_by_the_others(tmp_path: Path, running: list[BaseProcess]) -> None:
    output = tmp_path / "out"
    running += launch(PAIR, write_config(tmp_path), output, *LONG)
    wait_for(lambda: has_trained(output))
    running[1].kill()
    assert join(running, 20) == [3, -signal.SIGKILL]
    assert "rank 0: error: rank 1 gave no sign of life for 4 s: dead or stopped" in said(output)
    assert said(output).endswith("nothing is saved yet: the same command begins again\n")


@pytest.mark.slow
def test_a_stopped_process_is_named_within_the_configured_time(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    output = tmp_path / "out"
    running += launch(PAIR, write_config(tmp_path), output, *LONG, "TRAIN.LOST_AFTER", 6)
    wait_for(lambda: has_trained(output))
    os.kill(running[0].pid or 0, signal.SIGSTOP)  # the one that has the store
    assert join(running[1:], 20) == [3]
    assert re.search(r"rank 1: error: (rank 0 gave no sign|the launcher's store)", said(output))


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_process_whose_loader_is_stuck_ends_in_one_line(
    tmp_path: Path, running: list[BaseProcess]
) -> None:
    output = tmp_path / "out"
    opts = (*LONG, "TRAIN.LOST_AFTER", 4, "DATA.NUM_WORKERS", 1)
    running += launch(ALONE, write_config(tmp_path), output, *opts)
    worker = stop_loader(running[0], output)
    assert join(running, 30) == [3]
    require_gone({worker})
    assert re.fullmatch(
        r"error: no data came from the loader \(for \d s; this process is at engine.py, line \d+"
        r"\); nothing is saved yet: the same command begins again",
        said(output).splitlines()[-1],
    )


@pytest.mark.slow
def test_a_lost_machine_leaves_a_run_of_fewer_processes(tmp_path: Path) -> None:
    """Two torchruns, as on two machines; one is killed, the other goes on alone."""
    cfg, output = write_config(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"]
    command += ["--nproc_per_node", "1", "--max-restarts", "3", "--rdzv_backend", "c10d"]
    port = free_port()
    command += ["--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "lost"]
    command += ["main_simmim.py", "--cfg", str(cfg), "--output", str(output), "--opts"]
    command += ["TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "DATA.NUM_SHAPES", "1200"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    machines = []
    with open(tmp_path / "said", "w") as file:
        for _ in range(2):
            machines.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
            )
            wait_for(lambda: is_open(port))  # the first holds the rendezvous
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
    two = [line for line in lines if line["num_updates"] == 150]
    assert len(lines) == len(two) + (1200 - 8 * len(two)) // 4
