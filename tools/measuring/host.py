"""Speed of a machine's disk and of its loader workers, and what the workers need of the system."""

import contextlib
import itertools
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

_BLOCK = 2**24  # bytes
IN_FLIGHT = 3  # batches of each worker: two prefetched, one in use
_SHARED_MEMORY = Path("/dev/shm")
_OTHER_FILES = 200  # that a process opens besides those of its workers
_FILES_OF_A_WORKER = 12  # its pipes, and the shared memory of its batches


def existing(folder: Path) -> Path:
    """The folder itself, or where it would be created."""
    folder = folder.absolute()
    return folder if folder.exists() else existing(folder.parent)


@contextlib.contextmanager
def written_file(folder: Path, size: int) -> Iterator[tuple[Path, float]]:
    """A file of random bytes, flushed to the disk, and the seconds that it took; removed later."""
    block = os.urandom(_BLOCK)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".selftest") as file:
        start = time.perf_counter()
        for place in range(0, size, _BLOCK):
            file.write(block[: size - place])
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name), time.perf_counter() - start


def seconds_to_read(path: Path) -> float:
    """Seconds to read a file of `written_file` from its disk; ValueError where bytes changed."""
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # else it is read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        first = block = file.read(_BLOCK)
        while block:
            if block != first[: len(block)]:
                raise ValueError(f"{path} holds other bytes than were written")
            block = file.read(_BLOCK)
        return time.perf_counter() - start


def images_per_second(loader: DataLoader[list[Tensor]], seconds: float) -> float:
    """Images per second of all workers of a loader, after the batches that they prefetch.

    Its data set is repeated without an end: of a pass of few batches most workers would get none.
    """
    endless: DataLoader[list[Tensor]] = DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=itertools.chain.from_iterable(itertools.repeat(loader.sampler)),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )
    batches = iter(endless)
    for _ in range(IN_FLIGHT * loader.num_workers + 1):
        next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches)[0])
    return images / (time.perf_counter() - start)


def shared_memory(workers: int, bytes_per_batch: int) -> tuple[float, float]:
    """Bytes of shared memory that are free, and that loader workers need."""
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.exists() else float("inf")
    return free, IN_FLIGHT * workers * bytes_per_batch


def open_files(workers: int) -> tuple[float, float]:
    """Files that a process may have open, and that one with loader workers needs."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = allowed == resource.RLIM_INFINITY
    return float("inf") if unlimited else allowed, _OTHER_FILES + _FILES_OF_A_WORKER * workers
