"""A Slurm of several nodes on this machine, for tests of launches (root, slurm-wlm, munge)."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.long_runs import wait_for

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
_SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
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
{nodes}
PartitionName=all Nodes=ALL Default=YES OverSubscribe=FORCE:4
"""


def missing() -> str:
    """What a Slurm of our own needs and this machine lacks; empty where nothing does."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(absent)}" if absent else ""


@contextlib.contextmanager
def slurm(folder: Path, nodes: int = 2) -> Iterator[dict[str, str]]:
    """The environment in which srun and sbatch work; the daemons end with it."""
    port = random.randrange(30000, 32000)
    lines = [
        f"NodeName=node{number} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 "
        f"Port={port + number} CPUs=2 RealMemory=1000"
        for number in range(1, nodes + 1)
    ]
    text = _SETTINGS.format(
        host=socket.gethostname(), port=port, folder=folder, nodes="\n".join(lines)
    )
    settings, key = folder / "slurm.conf", folder / "munge" / "key"
    for name in ("munge", "state", *(f"node{number}" for number in range(1, nodes + 1))):
        (folder / name).mkdir(parents=True)
    settings.write_text(text)
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(settings)}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munge += [f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"]
    munge += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
    commands = [munge, ["slurmctld", "-D", "-c"]]
    commands += [["slurmd", "-D", "-N", f"node{number}"] for number in range(1, nodes + 1)]
    daemons = []
    try:
        with open(folder / "daemons.log", "w") as log:
            for command in commands:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
                wait_for(lambda: (folder / "munge" / "socket").exists())
        wait_for(lambda: _idle_nodes(environment) == nodes)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()


def _idle_nodes(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    return int(told.strip() or 0)
