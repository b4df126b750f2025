"""Signals by which a cluster takes its machine back, and processes that must not outlive others."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType

STATUS = 75  # EX_TEMPFAIL of sysexits.h: started again, the run goes on
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl

_received: list[str] = []


class PreemptedError(Exception):
    """The run has saved its state and stops because a signal asked for it."""


def listen() -> None:
    """From now on SIGTERM and SIGUSR1 ask the run to save and stop instead of ending it."""
    _received.clear()
    for number in _SIGNALS:
        signal.signal(number, _remember)


def ignore() -> None:
    """From now on the signals end the process again: it has nothing to save."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def requested() -> str:
    """Name of the signal that came, or nothing."""
    return _received[0] if _received else ""


def _remember(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)


def follow_parent() -> None:
    """Make this process one that only the process which started it ends: a loader's worker.

    Signals to a whole group are for the main process alone, which still needs its workers.
    """
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGUSR1):
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
    """Have this process get a signal when the one that started it ends, however it does (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
