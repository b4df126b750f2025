"""Keep freed memory in this process for its next tensors."""

import ctypes
import os

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch reads it at its first tensor

# Options of glibc's mallopt (malloc.h), and the environment variables by which a user sets them.
_KEPT = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),  # give nothing back to the system
    "MALLOC_TOP_PAD_": (-2, 2**26),  # request 64 MiB at a time
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),  # tensors up to 32 MiB (glibc's limit) are kept as well
    "MALLOC_ARENA_MAX": (-8, 1),  # one pool of freed memory for all threads
}


def keep_freed_memory() -> None:
    """Reuse freed memory instead of returning it to the system; call it before tensors are made.

    Every update needs the same tensors again. Memory returned to the system comes back page by
    page, with a page fault and zero-filling each, which takes some percent of an update on a CPU.
    Large tensors get pages of 2 MiB where the system has them. Settings in the environment are
    kept. C libraries other than glibc are left alone.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return
    for variable, (option, value) in _KEPT.items():
        if variable not in os.environ:
            mallopt(option, value)
