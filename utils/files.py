"""Files that outlive a crash, and a folder that belongs to one run at a time."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from utils.messages import shown

_BLOCK = 2**22  # bytes
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOCK, _MEMORY = "lock", "run.json"
# What `write_whole` leaves of a run's files where the process is killed.
_TEMPORARY = re.compile(r"\.(?:ckpt_epoch_\d+|best|diverged|run).*\.(\d+)\.tmp")


class DamagedError(ValueError):
    """A file whose content is proven damaged: by a checksum, or because its parts are not there."""


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: a file that was renamed in it keeps its new name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[IO[bytes]], object], flush: bool = True) -> None:
    """Write under another name, flush to the disk, then rename: readers see all or nothing.

    Without `flush` a lost machine may lose it. ValueError where that is impossible; an earlier file
    of that name is then untouched.
    """
    with _renamed_to(path, flush) as temporary, open(temporary, "w+b") as file:
        write(file)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def write_again(path: Path, source: Path) -> None:
    """Give a file that `write_whole` has written another name as well, or a copy where it cannot.

    Readers see all or nothing. ValueError where that is impossible.
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
    """A name beside `path` that is given to it at the end; ValueError where anything fails."""
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
    """What the system said, also where torch's writer hides it behind an error of its own."""
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
    """Remove a file, or a folder with all that it holds; nothing where there is none.

    OSError where that is impossible.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class RunFolder:
    """A run's folder, which belongs to one run at a time, and what it remembers in `run.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: FileLock | None = None
        self.identity: tuple[int, int] | None = None  # of the lock's file
        self.unlocked = ""  # why another run is not kept out, if so

    def acquire(self) -> None:
        """Take the folder, and remove what a killed run has left half written.

        ValueError where a living process, on any machine that shares the folder, uses it.
        """
        if self.lock is not None:
            return
        # A mere file would keep the folder of a process that was killed, from other machines.
        lock = FileLock(self.path / _LOCK, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            owner = self.remembered().get("process") or "another process"
            raise ValueError(
                f"output folder {self.path} is in use by {shown(owner)}: "
                "stop that run, or give another --tag or --output (only where that process is gone "
                f"for sure, with a machine that still has the lock: rm {self.path / _LOCK})"
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
        """Leave the folder to others."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def require_own(self) -> None:
        """ValueError where another run has the folder, which was removed and made again."""
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
        """What `remember` has noted; nothing where that cannot be read."""
        try:
            values = json.loads((self.path / _MEMORY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:  # it is no JSON: not from here
            return {}
        return values if isinstance(values, dict) else {}

    def remember(self, **values: object) -> None:
        """Note values beside those that are noted already."""
        noted = self.remembered() | values
        text = json.dumps(noted, indent=1) + "\n"
        # Which process has the folder is not worth waiting for a slow disk.
        flush = bool(noted.get("started_from"))
        write_whole(self.path / _MEMORY, lambda file: file.write(text.encode()), flush)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is, whatever its name; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_abandoned(path: Path) -> bool:
    """Whether a hidden file is what a save of a run that is dead has left half written."""
    match = _TEMPORARY.fullmatch(path.name)
    # A number of this process's own is that of an earlier one, as in containers.
    return match is not None and (int(match[1]) == os.getpid() or not _lives(int(match[1])))


def _lives(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
