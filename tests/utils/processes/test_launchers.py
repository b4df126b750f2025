"""Runs under real launchers: srun, sbatch, mpirun; torchrun is in the other files' tests."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm import Cluster
from tests.support.small_runs import ROOT, checkpoint_of, equal, under_torchrun, write_config

SHORT = ("DATA.NUM_SHAPES", 16, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "PICTURE_FREQ", 0)
SAYS = """
from utils.launch import read_launch
launch = read_launch()
print("launched:", launch and f"{launch.rank} of {launch.size} {launch.joins}")
"""
# Open MPI starts nothing as root without being told twice.
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of two processes under torchrun."""
    folder = tmp_path_factory.mktemp("torchrun")
    done = under_torchrun(2, write_config(folder), "--output", folder, "--opts", *SHORT)
    assert done.returncode == 0, done.stderr
    return checkpoint_of(folder, 0)


def command_of(folder: Path, output: str) -> list[str]:
    """A short run whose files go to FOLDER/OUTPUT."""
    command = [sys.executable, "main_simmim.py", "--cfg", str(write_config(folder))]
    return [*command, "--output", str(folder / output), "--opts", *map(str, SHORT)]


def run(command: list[str], environment: dict[str, str]) -> str:
    """What a command says that succeeds."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_tasks_of_srun_train_together_like_processes_of_torchrun(
    tmp_path: Path, cluster: Cluster, pair: dict[str, Any]
) -> None:
    said = run(["srun", "-n2", "-N2", *command_of(tmp_path, "out")], cluster.environment)
    assert "2 process(es)" in said
    assert equal(checkpoint_of(tmp_path / "out", 0)["model"], pair["model"])


@pytest.mark.slow
def test_only_what_srun_or_torchrun_started_as_one_of_several_joins_a_group(
    tmp_path: Path, cluster: Cluster
) -> None:
    """Of a job with two tasks: the batch script, a shell, one task of srun, torchrun in a task."""
    script, log = tmp_path / "job.sh", tmp_path / "log"
    python = shlex.join([sys.executable, "-c", SAYS])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node=2", "--no-python", sys.executable, "-c", SAYS]
    lines = (python, f"srun -n1 -N1 {python}", f"srun {python}")
    inner = shlex.join(["srun", "-n1", "-N1", *torchrun])
    script.write_text("\n".join(["#!/bin/sh", *lines, inner]))
    run(["sbatch", "--wait", "-n2", "-N2", f"--output={log}", str(script)], cluster.environment)
    told = [line for line in log.read_text().splitlines() if line.startswith("launched: ")]
    pair = ["launched: 0 of 2 True", "launched: 1 of 2 True"]
    assert told[:2] == ["launched: None", "launched: 0 of 1 False"]
    assert sorted(told[2:4]) == sorted(told[4:]) == pair
    said = run(["salloc", "-n2", "-N2", sys.executable, "-c", SAYS], cluster.environment)
    assert "launched: None" in said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")
def test_processes_of_mpirun_train_together_like_those_of_torchrun(
    tmp_path: Path, pair: dict[str, Any]
) -> None:
    mpirun = ["mpirun", "-n", "2", "--oversubscribe"]
    said = run([*mpirun, *command_of(tmp_path, "out")], os.environ | ROOT_MAY)
    assert "2 process(es)" in said
    assert equal(checkpoint_of(tmp_path / "out", 0)["model"], pair["model"])
