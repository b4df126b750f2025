"""Write files that survive a crash, and lock a folder for one run at a time."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from utils.launch import is_requeued
from utils.messages import shown

_BLOCK, _SMALL_BLOCK = 2**22, 2**16  # bytes
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOCK, _MEMORY = "lock", "run.json"
# Temporary files that `write_whole` leaves when the process is killed.
_TEMPORARY = re.compile(r"\.(?:ckpt_epoch_\d+|best|diverged|run).*\.(\d+)\.tmp")


class DamagedError(ValueError):
    """A file's content is proven damaged: a checksum differs, or a part is missing."""


class InUseError(ValueError):
    """A living process, perhaps on another machine, has locked a folder."""


def open_regular(path: str | Path) -> int:
    """Open a file for reading; return its descriptor.

    OSError where that fails; ValueError where it is a folder, a named pipe or a device, which may
    have no end.
    """
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ValueError("it is no regular file")


def read_regular(path: str | Path, largest: int) -> bytes:
    """Read a file of at most `largest` bytes.

    Errors are those of `open_regular`, and ValueError where the file is larger.
    """
    descriptor = open_regular(path)
    try:
        with open(descriptor, "rb", closefd=False) as file:
            return _read_at_most(file, largest, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _read_at_most(file: IO[bytes], largest: int, size: int) -> bytes:
    """Read a file that claims to have `size` bytes, but may grow, or not tell its size."""
    blocks: list[bytes] = []
    found = size if size > largest else 0
    while found <= largest and (block := file.read(max(size + 1, _SMALL_BLOCK))):
        blocks.append(block)
        found += len(block)
    if found > largest:
        raise ValueError(f"it has {found} bytes, more than {largest}")
    return b"".join(blocks)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, so that a file renamed in it keeps its new name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[IO[bytes]], object], flush: bool = True) -> None:
    """Write under a temporary name, flush to the disk, then rename: readers see all or nothing.

    Without `flush` the file may be lost when the machine crashes. ValueError where writing fails;
    an earlier file of that name is then untouched.
    """
    with _renamed_to(path, flush) as temporary, open(temporary, "w+b") as file:
        write(file)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def write_again(path: Path, source: Path) -> None:
    """Give a file that `write_whole` wrote a second name: a hard link, or a copy without links.

    Readers see all or nothing. ValueError where writing fails.
    """
    with _renamed_to(path, flush=True) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            with open(source, "rb") as original, open(temporary, "wb") as copy:
                shutil.copyfileobj(original, copy, _BLOCK)
                copy.flush()
                os.fsync(copy.fileno())


@contextlib.contextmanager
def _renamed_to(path: Path, flush: bool) -> Iterator[Path]:
    """Yield a temporary path beside `path`, then rename it to `path`; ValueError on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
        if flush:
            sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        gone = not path.parent.is_dir()
        reason = "its folder is gone, removed or renamed" if gone else _reason(error)
        raise ValueError(f"{path} cannot be written: {reason}") from None


def _reason(error: BaseException) -> str:
    """The system's error message, also where torch's writer raised its own error instead."""
    hidden: BaseException | None = error
    while hidden is not None:
        if isinstance(hidden, OSError) and hidden.strerror:
            return hidden.strerror
        hidden = hidden.__context__
    return str(error).strip().split("\n")[0]


def checksum(path: Path, length: int | None = None) -> Any:
    """The SHA-256 (a hashlib object) of a file, or of its first `length` bytes."""
    found = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            found.update(block)
            left -= len(block)
    return found


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; do nothing where there is none.

    OSError where that fails.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class RunFolder:
    """A run's folder, locked for one run at a time, and the values it keeps in `run.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: FileLock | None = None
        self.identity: tuple[int, int] | None = None  # of the lock's file
        self.unlocked = ""  # why the folder could not be locked, else empty

    def acquire(self) -> None:
        """Lock the folder, and remove half-written files of a killed run.

        InUseError where a living process on any machine that shares the folder holds the lock.
        """
        if self.lock is not None:
            return
        # A soft lock (a file that exists) would outlive a killed process and block other machines.
        lock = FileLock(self.path / _LOCK, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            owner = self.remembered().get("process") or "another process"
            advice = "stop that run, or give another --tag or --output"
            if is_requeued():
                advice = "it may be what this job had started on a lost node: start it again later"
            raise InUseError(
                f"output folder {self.path} is in use by {shown(owner)}: {advice} (only where that "
                f"process is gone for sure, with a machine that still has the lock: "
                f"rm {self.path / _LOCK})"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            self.unlocked = (
                f"{self.path}: no lock ({error.strerror}); start one run at a time there"
            )
        self.lock, self.identity = lock, _identity(self.path / _LOCK)
        self.remember(process=f"process {os.getpid()} on {socket.gethostname()}")
        for path in self.path.glob(".*"):
            if _is_abandoned(path):
                remove(path)

    def release(self) -> None:
        """Unlock the folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def require_own(self) -> None:
        """ValueError where the folder was removed and another run made it again."""
        if self.lock is None:
            return
        try:
            identity = _identity(self.path / _LOCK)
        except OSError:  # a file system that does not answer proves nothing
            return
        if identity not in (None, self.identity):
            raise ValueError(
                f"output folder {self.path} was removed and made again, by another run: "
                "nothing more is written there"
            )

    def remembered(self) -> dict[str, object]:
        """The values that `remember` stored; none where the file is missing or no JSON object."""
        try:
            values = json.loads((self.path / _MEMORY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:  # not JSON: another program wrote it
            return {}
        return values if isinstance(values, dict) else {}

    def remember(self, **values: object) -> None:
        """Store values in addition to those stored before."""
        noted = self.remembered() | values
        text = json.dumps(noted, indent=1) + "\n"
        # The owning process alone is not worth waiting for a slow disk.
        flush = bool(noted.get("started_from"))
        write_whole(self.path / _MEMORY, lambda file: file.write(text.encode()), flush)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, which a rename keeps; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_abandoned(path: Path) -> bool:
    """Whether a hidden file is the half-written temporary file of a dead process."""
    match = _TEMPORARY.fullmatch(path.name)
    # This process's own number was that of an earlier one, as in containers.
    return match is not None and (int(match[1]) == os.getpid() or not _lives(int(match[1])))


def _lives(process: int) -> bool:
    """Whether this machine has a process with that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
