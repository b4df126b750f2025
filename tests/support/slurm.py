"""A Slurm of several nodes on this machine, for tests of launches (root, slurm-wlm, munge)."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.kills import free_port
from tests.support.long_runs import wait_for
from tests.support.small_runs import ROOT

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
_NODES = 4  # one is lost in a test, with one in its place
# Times that are short: a requeued job waits for cred_expire (5 s is the least, 120 s the default).
_SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/control.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/control.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
LaunchParameters=use_interactive_step
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SlurmdTimeout=2
MessageTimeout=2
TCPTimeout=1
ReturnToService=2
{nodes}
PartitionName=all Nodes=node1,node2 Default=YES OverSubscribe=FORCE:4
PartitionName=frail Nodes=node3,node4 OverSubscribe=FORCE:4
"""


@dataclass
class Cluster:
    """A Slurm that runs: nodes 1 and 2 in its default partition, 3 and 4 in `frail`."""

    folder: Path
    environment: dict[str, str]  # in which srun and sbatch work
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        """Start a daemon, by default a node's."""
        with open(self.folder / f"{name}.out", "a") as log:
            self.daemons[name] = subprocess.Popen(
                command or ("slurmd", "-D", "-N", name),
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """Kill a daemon; what a node's has started lives on."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def ask(self, *command: str) -> str:
        """What a command of Slurm says; it must succeed."""
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def states_of(self, job: str) -> list[str]:
        """The state of a job, as PENDING or COMPLETED; of an array, that of each of its jobs."""
        command = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}")
        return self.ask(*command, "--format=%T").split()

    def idle_nodes(self) -> int:
        """How many nodes have nothing to do."""
        command = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        told = subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout
        return sum(map(int, told.split()))


def missing() -> str:
    """What a Slurm of our own needs and this machine lacks; empty where nothing does."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(absent)}" if absent else ""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """A Slurm whose daemons end with it."""
    names = _prepare(folder)
    key, munge = folder / "munge" / "key", folder / "munge"
    own = {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    cluster = Cluster(folder, os.environ | own)
    try:
        cluster.start(
            *("munged", "munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={munge}/socket", f"--pid-file={munge}/pid"),
            *(f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        )
        wait_for(lambda: (munge / "socket").exists())
        cluster.start("slurmctld", "slurmctld", "-D", "-c")
        for name in names:
            cluster.start(name)
        wait_for(lambda: cluster.idle_nodes() == len(names), pause=0.1)
        yield cluster
    finally:
        subprocess.run(["scancel", "--user=root"], env=cluster.environment)  # of failed tests
        for name in reversed(cluster.daemons):
            cluster.kill(name)


def _prepare(folder: Path) -> list[str]:
    """Write the settings and munge's key; the nodes' names."""
    names = [f"node{number}" for number in range(1, _NODES + 1)]
    lines = [
        f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 "
        f"Port={free_port()} CPUs=2 RealMemory=1000"
        for name in names
    ]
    for name in ("munge", "state", *names):
        (folder / name).mkdir(parents=True)
    text = _SETTINGS.format(
        host=socket.gethostname(), port=free_port(), folder=folder, nodes="\n".join(lines)
    )
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    return names
