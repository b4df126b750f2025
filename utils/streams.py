"""Output without a reader or without room: standard streams, and files of lines."""

import contextlib
import errno
import io
import os
import sys
from pathlib import Path


class _Lossy(io.FileIO):
    """A file that discards bytes it cannot write instead of raising."""

    def write(self, data: object, /) -> int:
        """Write bytes; return how many were written or discarded."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written: int | None = super().write(data)  # type: ignore[arg-type]
        except OSError:
            return size
        return size if written is None else written  # None: a full non-blocking pipe


def open_missing() -> None:
    """Open closed standard streams as /dev/null, so that no later file gets their descriptors."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def escape_names() -> None:
    """Have the standard streams write as escapes what their encoding lacks.

    A file's name is bytes: those that are no UTF-8 are surrogates in a str, as PEP 383 has it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def lose_failures() -> None:
    """Discard output that the standard streams cannot take: the log file has it, too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # a replaced stream has its own reader, for example pytest
        with contextlib.suppress(OSError):
            stream.flush()
        raw = _Lossy(stream.fileno(), "w", closefd=False)
        options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        lossy = io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, stream.errors, None, **options
        )
        setattr(sys, name, lossy)


def append(path: Path, lines: bytes) -> None:
    """Append whole lines to a file, or nothing; OSError where there is no room for all of them."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        if file.write(lines) < len(lines):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
