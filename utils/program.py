"""How a program ends: its exit status, and the one line that says why."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from torch import distributed

from utils import preemption, watch
from utils.distributed import CommonError, launched, rank, stop_process_group, world_size
from utils.memory import keep_freed_memory


def run_program(main: Callable[[], None], resumes: bool = False) -> None:
    """Call `main`; a ValueError becomes one line and exit status 2, Ctrl-C status 130.

    `resumes`: started again, the program goes on where it was; then SIGTERM and SIGUSR1 have it
    save and end with status 75, and under torchrun it does not outlive torchrun.
    """
    keep_freed_memory()
    if resumes:
        preemption.listen()
        if launched():
            preemption.end_with_parent(signal.SIGTERM)
    try:
        main()
        watch.stop()
        stop_process_group()
        _end_at_once_beside_gloo(0)
    except preemption.PreemptedError as stop:
        if rank() == 0:
            print(stop, file=sys.stderr, flush=True)
        _end_at_once_beside_gloo(preemption.STATUS)
        sys.exit(preemption.STATUS)
    except RuntimeError as error:
        missing = watch.lost(error)
        if not missing:
            raise
        watch.leave(missing, " ".join(str(error).split())[:100])
    except CommonError as error:  # all processes have it: one says it
        if rank() == 0:
            print(f"rank {error.rank}: error: {error}", file=sys.stderr, flush=True)
        _end_at_once_beside_gloo(2)
    except ValueError as error:
        if os.environ.get("SIMMIM_TRACEBACK"):
            traceback.print_exc()
        where = f"rank {rank()}: " if world_size() > 1 else ""
        _leave(f"{where}error: {_last_line(error)}", status=2)
    except KeyboardInterrupt:
        hint = "; training goes on from its newest checkpoint with the same command"
        _leave(f"interrupted{hint if resumes else ''}", status=130)


def _end_at_once_beside_gloo(status: int) -> None:
    """End this process where gloo's threads live: they can abort one that tidies up."""
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _last_line(error: ValueError) -> str:
    """The message itself: a loader's worker puts its traceback before it."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = re.sub(r"^[\w.]*Error: ", "", text.splitlines()[-1])
    return " ".join(text.split())


def _leave(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
