"""What the system tells about a process: its memory, and how long it waited for a core."""

import os
import re
from pathlib import Path


def memory() -> int:
    """What this process holds, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def peak_of(process: int | str) -> int:
    """The most memory a process has had, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


def waited(process: int | str = "self") -> float:
    """Seconds in which a process could have gone on, but other programs had the cores."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
