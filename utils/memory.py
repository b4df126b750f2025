"""How this process keeps the memory that it has freed."""

import ctypes
import os

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch reads it at its first tensor

# Options of glibc's mallopt (malloc.h), and the environment variables by which a user sets them.
_KEPT = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),  # give nothing back to the system
    "MALLOC_TOP_PAD_": (-2, 2**26),  # ask it for 64 MiB at a time
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),  # tensors up to 32 MiB (glibc's limit) are kept as well
    "MALLOC_ARENA_MAX": (-8, 1),  # for whatever thread asks next
}


def keep_freed_memory() -> None:
    """Have freed memory used again instead of given back; call it before tensors are made.

    Every update needs the same tensors again. Given back to the system, their pages come one by
    one, each after a fault and filled with zeros, which on a CPU takes some percent of an update.
    Large tensors get pages of 2 MiB where the system has them. What the environment says already
    stays as it is; another C library than glibc is left alone.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return
    for variable, (option, value) in _KEPT.items():
        if variable not in os.environ:
            mallopt(option, value)
