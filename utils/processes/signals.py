"""Signals that ask a run to stop, and processes that must not outlive others.

This module imports quickly, so that a program can listen before it imports the rest.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from utils.launch import is_launched

STATUS = 75  # EX_TEMPFAIL of sysexits.h: the run resumes when started again
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)  # by a shell's `&`, by nohup
_ECHO = 2.0  # seconds: one request can arrive twice, from a scheduler or terminal and torchrun
_PR_SET_PDEATHSIG = 1  # of Linux's prctl

_heard_by: list[int] = []  # after `listen`: the end of a pipe into which signals are written
_received: list[signal.Signals] = []
_goes_on: list[Callable[[], str]] = []  # empty before training begins


class PreemptedError(Exception):
    """The run has saved its state and stops because signal `number` asked for it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number if number == signal.SIGINT else STATUS


def listen() -> None:
    """Let SIGTERM, SIGUSR1, SIGINT and SIGHUP ask the run to save and stop.

    Before `begin` there is nothing to save, and they end the process at once; so does a signal more
    than 2 s after the first. A separate thread receives them, also while the main one imports or
    waits in C. The end of a launcher arrives as SIGTERM (Linux). Further calls change nothing.
    """
    if _heard_by:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _heard_by.append(writer)
    signal.set_wakeup_fd(writer)
    for number in _SIGNALS:
        if number not in _MAY_BE_IGNORED or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    threading.Thread(target=_hear, args=(reader,), name="signals", daemon=True).start()
    if is_launched():
        _follow_launcher()


def ignore() -> None:
    """Restore the signals' default actions, for a process that has nothing to save."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def begin(goes_on: Callable[[], str]) -> None:
    """Defer signals from now on: `requested` reports the first; `goes_on` tells what is saved."""
    _goes_on[:] = [goes_on]


def finish() -> None:
    """Ignore signals from now on: everything is saved, and the process is about to end."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def requested() -> int:
    """Number of the first signal received, or 0."""
    return _received[0] if _received else 0


def goes_on() -> str:
    """Words for what the same command resumes from; empty before training begins."""
    with contextlib.suppress(OSError):
        return _goes_on[0]() if _goes_on else ""
    return "the saved checkpoints cannot be listed"


def end_at_once(why: str, status: int) -> None:
    """End this process at once from any thread, with one line on standard error."""
    with contextlib.suppress(OSError):  # not through sys.stderr, whose lock another thread may hold
        os.write(2, f"{'; '.join(filter(None, (why, goes_on())))}\n".encode(errors="replace"))
    os._exit(status)


def _hear(reader: int) -> None:
    first = 0.0
    while True:
        number = signal.Signals(os.read(reader, 1)[0])
        if number not in _SIGNALS:
            continue
        if not _goes_on:
            status = 128 + number if number == signal.SIGINT else STATUS
            end_at_once(f"stopped by {number.name} before training began", status)
        if not _received:
            first = time.monotonic()
            _received.append(number)
        elif time.monotonic() - first > _ECHO:
            end_at_once(f"ended by {number.name}, the second signal", 128 + number)


def _follow_launcher() -> None:
    """End when the process that started this one ends, or at once where it has already ended."""
    launcher = os.getppid()
    end_with_parent(signal.SIGTERM)
    orphaned = launcher == 1 and "TORCHELASTIC_RUN_ID" in os.environ and not _first_is_python()
    if orphaned or os.getppid() != launcher:
        end_at_once("the launcher has ended", STATUS)


def _first_is_python() -> bool:
    """Whether process 1 may be torchrun, as in a container, and not an init that adopts orphans."""
    try:
        return "python" in os.path.basename(os.readlink("/proc/1/exe"))
    except OSError:  # another user's process, which did not start this one
        return False


def follow_parent() -> None:
    """Let only the parent process end this one, a loader's worker.

    Signals to the process group are for the main process, which still needs its workers.
    """
    signal.set_wakeup_fd(-1)  # of the main process
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_by_parent, name="signals", daemon=True).start()


def _end_by_parent() -> None:
    parent = multiprocessing.parent_process()  # not os.getppid(): that may be a fork server
    while parent is not None and signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        pass
    os._exit(0)


def end_with_parent(number: signal.Signals) -> None:
    """Have this process receive a signal when its parent ends for any reason (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
