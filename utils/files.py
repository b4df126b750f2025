"""Files that outlive a crash, and a folder that belongs to one run at a time."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_BLOCK = 2**22  # bytes
_LOCK = "lock"
_TEMPORARY = ".*.tmp"


class DamagedError(ValueError):
    """A file whose content is proven damaged: by a checksum, or because its parts are not there."""


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: a file that was renamed in it keeps its new name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write under another name, flush to the disk, then rename: readers see all or nothing.

    ValueError where that is impossible; an earlier file of that name is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be written: {reason}") from None


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
    """Remove a file, or a folder with all that it holds; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class FolderLock:
    """Says that a folder is in use, as long as this process lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: IO[str] | None = None

    def acquire(self) -> str:
        """Take the folder, and remove what a killed run has left half written.

        Returns what a log should say: nothing, or that this file system knows no locks.
        ValueError where a living process, on any machine that shares the folder, uses it.
        """
        self.file = open(self.folder / _LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            # Not inherited by workers, and gone with the process however it ends.
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.file.seek(0)
            owner = self.file.read(200).strip() or "another process"
            raise ValueError(
                f"output folder {self.folder} is in use by {owner}: "
                "stop that run, or give another --tag or --output"
            ) from None
        except OSError as error:
            return f"{self.folder}: no lock ({error.strerror}); start one run there at a time"
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()
        for path in self.folder.glob(_TEMPORARY):
            remove(path)
        return ""
