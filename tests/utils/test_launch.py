"""What the environment tells of launchers; real ones are in tests/utils/processes."""

import os
from pathlib import Path

import pytest

import utils.launch
from utils.launch import Launch, first_host, idle_tasks, is_launched, meeting_place, read_launch

# What real ones set (Slurm 22.05, Open MPI 4.1), shortened.
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_SUBMIT_DIR": "/home",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
}
BATCH = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = BATCH | {
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "node1",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PLAIN = {"RANK": "1", "WORLD_SIZE": "2"}
TORCHRUN = PLAIN | {"LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "123"}


def launch_of(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Launch | None:
    """What a process with these variables and no other launcher's reads."""
    for name in (*STEP, *MPI, *HYDRA, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return read_launch()


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        (TORCHRUN, ("host", 123)),
        (PLAIN | {"MASTER_ADDR": "host"}, ("host", 29500)),
        (STEP | {"MASTER_ADDR": "host", "MASTER_PORT": "123"}, ("host", 123)),
        (STEP, ("127.0.0.1", None)),
        (STEP | {"WORLD_SIZE": "2"}, ("127.0.0.1", None)),  # a batch script has exported it
        (STEP | {"PMI_RANK": "1", "PMI_SIZE": "2"}, ("127.0.0.1", None)),  # srun --mpi=pmi2
        (MPI, ("127.0.0.1", 29500)),
        (MPI | {"PMIX_NAMESPACE": "1"}, ("127.0.0.1", None)),
        (HYDRA, ("127.0.0.1", 29500)),
        # torchrun below srun, mpirun below srun (one task a node), torchrun below mpirun
        (STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"} | TORCHRUN, ("host", 123)),
        (STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"} | MPI, ("127.0.0.1", 29500)),
        (MPI | {"OMPI_COMM_WORLD_RANK": "0"} | TORCHRUN, ("host", 123)),
        # a container that gets only some of Slurm's variables
        (
            {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"}
            | {"SLURM_JOB_ID": "7", "SLURM_NODELIST": "n1"},
            ("127.0.0.1", None),
        ),
    ],
)
def test_process_1_of_2_and_its_meeting_place_are_read(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: tuple[str, int | None]
) -> None:
    launch = launch_of(monkeypatch, variables)
    assert launch is not None
    assert (launch.rank, launch.size, launch.joins) == (1, 2, True)
    assert launch.local_rank == (None if variables == PLAIN | {"MASTER_ADDR": "host"} else 1)
    address, port = meeting_place(launch)
    assert address == place[0]
    assert port == place[1] or (place[1] is None and 10000 <= port < 30000)
    assert is_launched()


@pytest.mark.parametrize(
    "variables", [{}, JOB, BATCH, {"RANK": "", "WORLD_SIZE": ""}, {"WORLD_SIZE": "1"}]
)
def test_a_batch_script_and_a_shell_run_one_process(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    assert launch_of(monkeypatch, variables) is None
    assert not is_launched()
    told = "Slurm's job has 2 tasks, of which this is one process alone: srun python ... starts"
    assert idle_tasks().startswith(told) == (variables in (JOB, BATCH))


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0", "WORLD_SIZE": "1"},
        STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_that_is_the_only_one_joins_no_group(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    launch = launch_of(monkeypatch, variables)
    assert launch is not None
    assert not launch.joins
    assert not is_launched()  # it must not end with the shell that started it


@pytest.mark.parametrize(
    ("variables", "local_rank"),
    [
        (PLAIN | {"SLURM_LOCALID": "3"}, 3),
        (PLAIN | {"MPI_LOCALRANKID": "3"}, 3),
        (PLAIN | {"LOCAL_RANK": "0"} | STEP, 0),
        (PLAIN | STEP, 1),
        (PLAIN, None),
        # of other processes: the shell of a batch script, a task that started several by hand
        (PLAIN | BATCH, None),
        (PLAIN | STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_the_local_rank_is_that_of_a_launcher_that_numbers_alike(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], local_rank: int | None
) -> None:
    launch = launch_of(monkeypatch, variables)
    assert launch is not None
    assert launch.local_rank == local_rank


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "RANK is '0', but WORLD_SIZE is not set: set both, or neither"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2', but RANK is not set: set both, or neither"),
        ({"WORLD_SIZE": "4"} | STEP, "RANK is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', expected a whole number from 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999.*expected a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, expected a number below WORLD_SIZE.* 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0, expected a number below"),
        (PLAIN | {"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', expected a whole number"),
        ({"PMI_RANK": "0", "MPI_LOCALRANKID": "0"}, "PMI_RANK is '0', but PMI_SIZE is not set"),
    ],
)
def test_numbers_that_are_missing_or_wrong_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        launch_of(monkeypatch, variables)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (PLAIN, "MASTER_ADDR is not set: .* of process 0 .MASTER_ADDR=HOST., or use torchrun"),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "mpirun -x MASTER_ADDR=HOST"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http', expected a whole number"),
        (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT is '65536', .* from 0 to 65535"),
        (
            STEP | {"SLURM_STEP_NODELIST": "no-such-node[3-4]", "PATH": ""},
            "first node 'no-such-node3' has no address here: export MASTER_ADDR",
        ),
    ],
)
def test_a_meeting_place_that_nothing_tells_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    launch = launch_of(monkeypatch, variables)
    assert launch is not None
    with pytest.raises(ValueError, match=message):
        meeting_place(launch)


def test_slurm_is_asked_again_while_its_controller_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/asked ] && echo NodeName=n NodeAddr=10.0.0.7 && exit 0\n"
        f"touch {tmp_path}/asked\necho 'Unable to contact slurm controller (connect failure)' >&2\n"
        "exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(utils.launch, "_PAUSE", 0.0)
    path = f"{tmp_path}:{os.environ['PATH']}"
    launch = launch_of(
        monkeypatch, STEP | {"SLURM_STEP_NODELIST": "no-such-node[3-4]", "PATH": path}
    )
    assert launch is not None
    assert meeting_place(launch)[0] == "10.0.0.7"


def test_two_steps_meet_at_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for step in range(20):
        launch = launch_of(monkeypatch, STEP | {"SLURM_STEP_ID": str(step)})
        assert launch is not None
        ports.add(meeting_place(launch)[1])
    assert len(ports) == 20


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[1-3,7]", "node1"),
        ("a[07-09,12],b", "a07"),
        ("rack[1-2]node[3-4]x", "rack1node3x"),
        ("b1,c[2-3]", "b1"),
    ],
)
def test_the_first_host_of_a_list_is_found(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
