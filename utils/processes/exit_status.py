"""Run a program and end it with an exit status and one line that gives the reason."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from torch import distributed

from utils import streams
from utils.device import prepare_process
from utils.files import InUseError
from utils.launch import is_requeued
from utils.messages import fail, reason_of
from utils.processes import heartbeat, signals
from utils.processes.group import CommonError, rank, world_size
from utils.processes.loading import shortage


def run_program(main: Callable[[], int | None], resumes: bool = False) -> None:
    """Call `main`, which may return an exit status; a ValueError or OSError is one line and 2.

    Ctrl-C ends the program with status 130. `resumes`: the program can resume when started again,
    so it saves and ends at signals (`utils.processes.signals`) and when its launcher ends.
    """
    streams.open_missing()
    streams.escape_names()
    prepare_process()
    if resumes:
        signals.listen()
    try:
        status = _call(main) or 0
        if distributed.is_initialized():
            distributed.barrier()  # while the heartbeat can still tell who is missing
            _end_at_once(status)
        heartbeat.stop()
        if status:
            sys.exit(status)
    except signals.PreemptedError as stop:
        if rank() == 0:
            print(stop, file=sys.stderr, flush=True)
        _end_at_once(stop.status)  # everything is written, and a loader may hang
    except (RuntimeError, MemoryError, EOFError) as error:
        _fail_if_short(error)
        missing = heartbeat.lost(error) if isinstance(error, RuntimeError) else ""
        if not missing:
            _raise()
        heartbeat.leave(missing, reason_of(error))
    except CommonError as error:  # all processes raise it: rank 0 prints it
        if rank() == 0:
            print(f"rank {error.rank}: error: {error}", file=sys.stderr, flush=True)
        _end_at_once(_status_of(error.in_use))
    except (ValueError, OSError) as error:
        _fail_if_short(error)
        _fail(_last_line(error), error, _status_of(isinstance(error, InUseError)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        if distributed.is_initialized():
            _end_at_once(130)
        sys.exit(130)
    except Exception:
        _raise()


def _call(main: Callable[[], int | None]) -> int | None:
    try:
        return main()
    except BaseException:
        # torch raises in the main thread when a worker dies, also while another error is handled.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise


def _fail_if_short(error: Exception) -> None:
    """End the program where memory, shared memory or open files were short."""
    if why := shortage(error):
        goes_on = signals.goes_on() or "start the same command again"
        with contextlib.suppress(SystemExit):
            _fail(f"{why}; {goes_on}", error)
        _end_at_once(2)  # loaders that failed do not end cleanly


def _status_of(in_use: bool) -> int:
    """Status of an error; a folder in use may be free when a requeued job is started again."""
    return signals.STATUS if in_use and is_requeued() else 2


def _fail(message: str, error: Exception, status: int = 2) -> NoReturn:
    """End the program with one line and a status; at once where other threads use a group."""
    where = f"rank {rank()}: " if world_size() > 1 else ""
    try:
        fail(f"{where}error: {message}", error, status)
    finally:
        if distributed.is_initialized():
            _end_at_once(status)


def _raise() -> NoReturn:
    """Raise the present exception; print its traceback and end where other threads use a group."""
    if not distributed.is_initialized():
        raise
    sys.excepthook(*sys.exc_info())  # torch's, which names the rank
    _end_at_once(1)


def _end_at_once(status: int) -> NoReturn:
    """End this process without cleaning up.

    Destroying a group of gloo right after a collective, or leaving it to Python's end, can hang or
    abort the process (torch 2.6 to 2.15); beside nccl, sharded saves use such groups as well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _last_line(error: ValueError | OSError) -> str:
    """The message itself, without the traceback that a loader's worker puts before it."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'a file'}: {error.strerror}"
    if "Original Traceback" in text:
        text = re.sub(r"^[\w.]*Error: ", "", text.splitlines()[-1])
    return " ".join(text.split())
