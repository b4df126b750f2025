"""Make something once on each machine, in memory that the machine's processes share."""

import itertools
import json
import mmap
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch.distributed import Store

from utils.messages import reason_of
from utils.processes.group import CommonError, rank, shared_store, world_size

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5  # seconds between two looks at the store
_ALIGNMENT = 64  # bytes
_LONGEST_MESSAGE = 1000  # characters

Made = TypeVar("Made")
_calls = itertools.count()


def make_once_per_machine(what: str, make: Callable[[], Made]) -> Made:
    """Return `make()` of one of the machine's processes; call it in all processes.

    Only processes that give the same `what` and see the same files share a result. Its arrays are
    read-only, and in memory that they share.
    The others wait by looking at the launcher's store. Unlike a collective that cannot time out,
    however long `make` takes, and the heartbeat ends them if its process dies. All processes raise
    the first ValueError, OSError or MemoryError of any. Without others, this is `make()`.
    """
    if world_size() == 1:
        return make()
    store = shared_store(f"sharing/{next(_calls)}")
    places = _exchange(store, "place", f"{_place()} {what}")
    maker = places.index(places[rank()])
    made: list[Made] = []
    offer, descriptor, error = "", -1, ""
    if maker == rank():
        error = _attempt(lambda: made.append(make()))
        if made and places.count(places[maker]) > 1:
            offer, descriptor = _offered(made[0])
        if offer:
            made.clear()
    offers = _exchange(store, "offer", offer)
    _raise_first(_exchange(store, "error", error))
    if not made:
        error = _attempt(lambda: made.append(_accepted(offers[maker], make)))
    _raise_first(_exchange(store, "accepted", error))
    if descriptor >= 0:
        os.close(descriptor)  # every process has mapped it
    return made[0]


def _place() -> str:
    """Words that are equal for processes that see the same files, and each other's."""
    try:
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()]
        parts += [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid")]
    except OSError:  # not Linux, or a container without /proc
        return f"rank {rank()}"
    root = os.stat("/")
    return " ".join((*parts, f"{root.st_dev}:{root.st_ino}", str(os.getuid()), os.getcwd()))


def _exchange(store: Store, name: str, own: str) -> list[str]:
    """Tell all processes something; return what each told, once all have."""
    store.set(f"{name}/{rank()}", own)
    store.add(name, 1)
    pause = _FIRST_PAUSE
    while store.add(name, 0) < world_size():
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    keys = [f"{name}/{other}" for other in range(world_size())]
    return [told.decode(errors="surrogateescape") for told in store.multi_get(keys)]


def _attempt(act: Callable[[], object]) -> str:
    """Call `act`; return the message of an error that users can mend, else nothing."""
    try:
        act()
    except (ValueError, OSError, MemoryError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{where}{reason_of(error)}"[:_LONGEST_MESSAGE]
    return ""


def _raise_first(errors: list[str]) -> None:
    for other, message in enumerate(errors):
        if message:
            raise CommonError(message, other)


def _offered(made: object) -> tuple[str, int]:
    """The result of `_offer`; "" where this Python or system cannot, so that each makes its own."""
    try:
        return _offer(made)
    except (AttributeError, OSError):  # Python for old systems, as of conda; a sandbox; a limit
        return "", -1


def _offer(made: object) -> tuple[str, int]:
    """Write something to memory outside this process; return how to open it, and its descriptor.

    A file of memory needs no room in a temporary folder, and is gone with its last process.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(made, protocol=5, buffer_callback=buffers.append)
    descriptor = os.memfd_create("simmim")
    places: list[tuple[int, int]] = []
    try:
        with open(descriptor, "wb", closefd=False) as file:
            for part in (memoryview(head), *(buffer.raw() for buffer in buffers)):
                file.write(bytes(-file.tell() % _ALIGNMENT))
                places.append((file.tell(), part.nbytes))
                file.write(part)
    except OSError:
        os.close(descriptor)
        raise
    return json.dumps([os.getpid(), descriptor, places]), descriptor


def _accepted(offer: str, make: Callable[[], Made]) -> Made:
    """What another process offers, in shared memory; `make()` where it cannot be opened."""
    if not offer:
        return make()
    try:
        process, number, places = json.loads(offer)
        with open(f"/proc/{process}/fd/{number}", "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError:  # a sandbox that hides the files of other processes
        return make()
    head, *buffers = (content[start : start + length] for start, length in places)
    made: Made = pickle.loads(head, buffers=buffers)
    return made
