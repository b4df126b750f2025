"""Output that nobody reads, or for which there is no room: standard streams, files of lines."""

import contextlib
import errno
import io
import os
import sys
from pathlib import Path


class _Lossy(io.FileIO):
    """Loses what cannot be written instead of raising."""

    def write(self, data: object, /) -> int:
        """Write bytes; how many are dealt with."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written: int | None = super().write(data)  # type: ignore[arg-type]
        except OSError:
            return size
        return size if written is None else written  # None: a pipe that is full and does not wait


def open_missing() -> None:
    """Give closed streams a place to go to: else the next file that is opened takes theirs."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def lose_failures() -> None:
    """From now on what the streams cannot take is lost: a log file has it, the program goes on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # whoever has put another one there reads it
        with contextlib.suppress(OSError):
            stream.flush()
        raw = _Lossy(stream.fileno(), "w", closefd=False)
        options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        lossy = io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, stream.errors, None, **options
        )
        setattr(sys, name, lossy)


def append(path: Path, lines: bytes) -> None:
    """Add whole lines to a file, or nothing: OSError where there is no room for all of them."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        if file.write(lines) < len(lines):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
