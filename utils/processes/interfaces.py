"""The network interface by which this process reaches the others."""

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from pathlib import Path

VARIABLE = "GLOO_SOCKET_IFNAME"  # gloo reads it whenever a group is made
_SIOCGIFCONF = 0x8912  # of Linux: the IPv4 addresses of all interfaces
_ENTRY = 40  # bytes of one of its answers: a name of 16, then the address at 20


def address_towards(host: str) -> str:
    """This process's own address on the way to a host; empty without a way. Nothing is sent."""
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return ""
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return ""


def is_loopback(address: str) -> bool:
    """Whether other machines cannot mean this one by an address."""
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def choose_interface(address: str) -> None:
    """Have gloo use the interface with this address, unless the environment names another one.

    By default gloo takes the address to which the host's own name resolves, which often is one of
    the loopback interface. Nothing changes where the interface is not found.
    """
    with contextlib.suppress(OSError):  # a sandbox that does not tell its interfaces
        if name := "" if os.environ.get(VARIABLE) else _interface_of(address):
            os.environ[VARIABLE] = name


def _interface_of(address: str) -> str:
    """The name of the interface that has an address; empty where none is known."""
    if not address or sys.platform != "linux":
        return ""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    if mapped := getattr(wanted, "ipv4_mapped", None):
        wanted = mapped
    if wanted.is_loopback:
        return "lo"
    found = _interfaces_of_ipv4() if wanted.version == 4 else _interfaces_of_ipv6()
    name = found.get(wanted.packed, "")
    return "" if name == "lo" else name  # gloo would take its first address, 127.0.0.1


def _interfaces_of_ipv4() -> dict[bytes, str]:
    """Address -> name, as the kernel tells without netlink, which containers may lack."""
    import array
    import fcntl

    answer = array.array("B", bytes(_ENTRY * 1024))
    request = struct.pack("iL", len(answer), answer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        length = struct.unpack("iL", fcntl.ioctl(any_socket, _SIOCGIFCONF, request))[0]
    entries = [bytes(answer[start : start + _ENTRY]) for start in range(0, length, _ENTRY)]
    names = {entry[20:24]: entry[:16].partition(b"\0")[0].decode() for entry in entries}
    return {address: name.partition(":")[0] for address, name in names.items()}


def _interfaces_of_ipv6() -> dict[bytes, str]:
    """Address -> name, from the kernel's table."""
    table = Path("/proc/net/if_inet6")
    rows = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    return {bytes.fromhex(row[0]): row[-1] for row in rows}
