"""Read from the environment which launcher started this process, and with which others."""

import os
import re
import socket
import subprocess
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from utils.messages import shown

# To ask Slurm whose controller is away for a moment: times, and seconds between two of them.
_TRIES, _PAUSE = 6, 10.0

_DEFAULT_PORT = 29500  # torch's
_FIRST_PORT, _NUM_PORTS = 10000, 20000  # below those that systems give to clients
_TORCHRUN = "torchrun --nproc_per_node N"


@dataclass(frozen=True)
class _Launcher:
    """The variables by which a launcher numbers its processes."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str = ""
    job: str = ""  # tells jobs on one machine apart


_BY_RANK = _Launcher("RANK and WORLD_SIZE", "RANK", "WORLD_SIZE", "LOCAL_RANK")
_OPEN_MPI = _Launcher(
    "mpirun",
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"),
)
_HYDRA = _Launcher("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SRUN = _Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
# torchrun may run below srun or mpirun, and mpirun below srun: the inner launcher counts.
_LAUNCHERS = (_BY_RANK, _OPEN_MPI, _HYDRA, _SRUN)


@dataclass(frozen=True)
class Launch:
    """This process's place among those that a launcher started together.

    `local_rank` is None where nothing tells the process's number on its machine.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int | None
    has_address: bool

    @property
    def joins(self) -> bool:
        """Whether the process belongs to a group; a single one may without need of others."""
        return self.size > 1 or (self.launcher == _BY_RANK.name and self.has_address)


def read_launch() -> Launch | None:
    """This process's launch; None where no launcher started it.

    ValueError where the launcher's variables are incomplete or contradict each other.
    """
    environment = _known(os.environ)
    launcher = _launcher_in(environment)
    if launcher is None:
        return None
    for name, other in ((launcher.rank, launcher.size), (launcher.size, launcher.rank)):
        if other not in environment:
            raise ValueError(
                f"{name} is {shown(environment[name])}, but {other} is not set: set both, or "
                f"neither to run one process (several: {_TORCHRUN} ...)"
            )
    rank, size = _number(environment, launcher.rank), _number(environment, launcher.size)
    if not rank < size:
        raise ValueError(
            f"{launcher.rank} is {rank}, expected a number below {launcher.size}, which is {size}"
        )
    local_rank = _local_rank(environment, launcher, rank, size)
    return Launch(launcher.name, rank, size, local_rank, "MASTER_ADDR" in environment)


def is_launched() -> bool:
    """Whether a launcher started this process as one of a group; not where a variable is wrong."""
    try:
        launch = read_launch()
    except ValueError:  # which ends the program as soon as it starts its group
        return False
    return launch is not None and launch.joins


def is_requeued() -> bool:
    """Whether Slurm has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0").strip() not in ("", "0")


def idle_tasks() -> str:
    """Words for a job of several tasks of which this process is the only one; else empty."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    if not tasks.isdecimal() or int(tasks) < 2 or _launcher_in(_known(os.environ)) is not None:
        return ""
    return (
        f"Slurm's job has {int(tasks)} tasks, of which this is one process alone: "
        "srun python ... starts all of them"
    )


def meeting_place(launch: Launch) -> tuple[str, int]:
    """Address and port at which the processes meet: MASTER_ADDR and MASTER_PORT where they are set.

    Below srun it is the step's first node, below mpirun on one machine that machine. ValueError
    where nothing tells the address.
    """
    environment = _known(os.environ)
    given = "MASTER_PORT" in environment
    port = _number(environment, "MASTER_PORT", most=65535) if given else _port(launch, environment)
    if address := environment.get("MASTER_ADDR"):
        return address, port
    if launch.launcher == _SRUN.name:
        return _address_of_step(environment), port
    for launcher in (_OPEN_MPI, _HYDRA):
        sizes = [environment.get(name) for name in (launcher.size, launcher.local_size)]
        if launch.launcher == launcher.name and sizes[0] == sizes[1] == str(launch.size):
            return "127.0.0.1", port
    where = "mpirun -x MASTER_ADDR=HOST ..." if launch.launcher == "mpirun" else "MASTER_ADDR=HOST"
    raise ValueError(
        f"{launch.launcher} started {launch.size} processes, but MASTER_ADDR is not set: give the "
        f"name or address of the machine of process 0 ({where}), or use {_TORCHRUN} ..."
    )


def _known(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that have a value, with the number of srun's tasks where only parts are known.

    A container may get a few of Slurm's variables. Where it has all of them, those of a step are
    among them if srun started it; a batch script has those of its job alone and is one process.
    """
    known = {name: value for name, value in environment.items() if value.strip()}
    if "SLURM_STEP_ID" not in known and "SLURM_SUBMIT_DIR" in known:
        return {name: value for name, value in known.items() if not name.startswith("SLURM_")}
    if _SRUN.rank in known and "SLURM_NTASKS" in known:
        known.setdefault(_SRUN.size, known["SLURM_NTASKS"])
    sizes = ["1", *(known.get(other.size) for other in _LAUNCHERS if other.rank in known)]
    if _BY_RANK.rank not in known and known.get(_BY_RANK.size) in sizes:
        known.pop(_BY_RANK.size, None)  # a script has exported what the launcher knows better
    return known


def _launcher_in(environment: Mapping[str, str]) -> _Launcher | None:
    if _BY_RANK.rank in environment or _BY_RANK.size in environment:
        return _BY_RANK
    if _OPEN_MPI.rank in environment:
        return _OPEN_MPI
    # srun sets PMI_RANK as well, for programs of MPI.
    if _HYDRA.rank in environment and _HYDRA.local_rank in environment:
        return _HYDRA
    return _SRUN if _SRUN.rank in environment else None


def _number(environment: Mapping[str, str], name: str, most: int = 10**6) -> int:
    text = environment[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise ValueError(
            f"{name} is {shown(environment[name])}, expected a whole number from 0 to {most}"
        )
    return int(text)


def _local_rank(
    environment: Mapping[str, str], launcher: _Launcher, rank: int, size: int
) -> int | None:
    """The process's number on its machine, from the first launcher that numbers it alike."""
    for other in (launcher, *_LAUNCHERS):
        numbers = {other.rank: str(rank), other.size: str(size)}
        alike = all(environment.get(name, value) == value for name, value in numbers.items())
        if other.local_rank in environment and (alike or other is launcher):
            return _number(environment, other.local_rank)
    return None


def _port(launch: Launch, environment: Mapping[str, str]) -> int:
    """A port that follows from the job and its step, so that two jobs have different ones."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID") if launch.launcher == "srun" else (_OPEN_MPI.job,)
    job = [environment[name] for name in names if name in environment]
    if launch.launcher == _BY_RANK.name or not job:
        return _DEFAULT_PORT
    return _FIRST_PORT + zlib.crc32(" ".join(job).encode()) % _NUM_PORTS


def _address_of_step(environment: Mapping[str, str]) -> str:
    """The address of the first node of srun's step."""
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((environment[name] for name in names if name in environment), "")
    if not nodes:
        raise ValueError("srun started several processes, but SLURM_STEP_NODELIST is not set")
    if not re.search(r"[\[,]", nodes):
        return "127.0.0.1"  # all processes are on one machine
    first = first_host(nodes)
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        return _address_in_slurm(first)
    return first


def first_host(nodes: str) -> str:
    """The first name of a list as Slurm writes it: "a[07-09,12],b" begins with "a07"."""
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes).split(",")[0]


def _address_in_slurm(node: str) -> str:
    """The address that Slurm's configuration gives a node whose name means nothing to the system.

    ValueError where it gives none, also where Slurm does not answer for a minute.
    """
    command = ["scontrol", "show", "node", "--oneliner", node]
    reason = ""
    for _ in range(_TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            break
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = f" ({error})"
        else:
            if found := re.search(r"NodeAddr=(\S+)", done.stdout):
                return found[1]
            reason = f" ({' '.join(done.stderr.split())})" if done.stderr.strip() else ""
            if "controller" not in done.stderr:  # Slurm has answered
                break
        time.sleep(_PAUSE)
    raise ValueError(
        f"the step's first node {shown(node)} has no address here{reason}: export MASTER_ADDR, its "
        "address"
    )
