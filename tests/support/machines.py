"""Two machines on one: network namespaces that a cable joins (root and iproute2)."""

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.kills import work

_NEW_NETWORK, _NEW_HOST_NAME = 0x40000000, 0x04000000  # of Linux's unshare and setns
_BITS = {4: 24, 6: 64}


@contextlib.contextmanager
def two_machines(addresses: tuple[str, str], version: int) -> Iterator[tuple[str, str]]:
    """The names of two namespaces, each with one of the addresses on its end of a cable.

    Each also has an interface that leads nowhere. OSError where the system does not allow it.
    """
    names = f"simmim-a{os.getpid()}", f"simmim-b{os.getpid()}"
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "add", "away", "type", "veth", "peer", "name", "end")
            _ip("-n", name, "addr", "add", "10.78.0.1/24", "dev", "away")
            _ip("-n", name, "link", "set", "away", "up")
        ends = ("link", "add", "cable", "netns", names[0], "type", "veth")
        _ip(*ends, "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            sure = ("nodad",) if version == 6 else ()  # or the address is of use a second later
            place = f"{address}/{_BITS[version]}"
            _ip("-n", name, "addr", "add", place, "dev", "cable", *sure)
            _ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())


def work_on(
    machine: str, program: str, arguments: list[str], environment: Mapping[str, str], log: str
) -> None:
    """What a process of a run does on a machine whose host name means its loopback interface."""
    system = ctypes.CDLL(None, use_errno=True)
    with open(Path("/run/netns") / machine) as namespace:
        if system.unshare(_NEW_HOST_NAME) or system.setns(namespace.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")
    socket.sethostname("localhost")
    work(program, arguments, dict(environment), log)
