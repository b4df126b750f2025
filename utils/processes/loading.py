"""Words for errors by which loaders and allocations fail for lack of memory or of open files."""

import errno
import inspect
import signal
import traceback

from torch.utils.data import DataLoader

from utils.messages import reason_of

_LOADING = inspect.getfile(DataLoader)
_FEWER = "give fewer DATA.NUM_WORKERS (--opts), a smaller --batch-size"
# What an error says -> what is short, and what helps; the first that fits counts.
_CAUSES = (
    (
        ("cuda out of memory", "cuda error: out of memory"),
        "the GPU's memory is short: give a smaller --batch-size or --use-checkpoint "
        "(python -m tools.plan estimates what fits)",
    ),
    (
        ("segmentation fault", "aborted", "illegal instruction"),
        "a loader's worker has crashed: --opts DATA.NUM_WORKERS 0 shows where",
    ),
    (
        ("no space left on device", "bus error", "shared memory", "shm"),
        f"shared memory (/dev/shm) is short: {_FEWER} or more of it (docker run --shm-size=16g)",
    ),
    (
        ("too many open files", "ancdata", "too many fds"),
        "too many files are open: raise the limit (ulimit -n) or give fewer DATA.NUM_WORKERS",
    ),
    (
        ("killed", "connection reset", "broken pipe", "exited unexpectedly", "eoferror"),
        f"a loader's worker has died, most often because memory is short: {_FEWER} or more memory",
    ),
    (("memory",), f"memory is short: {_FEWER} or more memory"),
)
_SHORT = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_OF_LOADERS = ("DataLoader worker", "</torch_", "ancdata", "Too many open files")
_OF_WORKERS = (ConnectionError, EOFError)


def shortage(error: BaseException) -> str:
    """Words for an error that lack of memory, shared memory or open files has caused.

    They give the error's own words and what helps. Empty for any other error.
    """
    text = _text_of(error)
    if not (_is_out_of_memory(error, text) or _fails_to_load(error, text)):
        return ""
    for words, helps in _CAUSES:
        if any(word in text.lower() for word in words):
            return f"{helps} ({text})"
    return f"a loader's worker has failed: {_FEWER} ({text})"


def _is_out_of_memory(error: BaseException, text: str) -> bool:
    allocators = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in allocators)
    )


def _fails_to_load(error: BaseException, text: str) -> bool:
    """Whether loaders and their workers, not the pictures, are the reason of an error."""
    if isinstance(error, RuntimeError):
        return any(words in text for words in _OF_LOADERS)
    number = getattr(error, "errno", None)
    frames = traceback.walk_tb(error.__traceback__)
    loads = any(frame.f_code.co_filename == _LOADING for frame, _ in frames)
    return loads and (isinstance(error, _OF_WORKERS) or number in _SHORT)


def _text_of(error: BaseException) -> str:
    """The error's own words, of one from a worker its last line; then those of its cause."""
    text = str(error).partition("Exception raised from")[0].strip()  # without C++ frames
    if "Original Traceback" in text:
        text = text.splitlines()[-1]
    if isinstance(error.__cause__, RuntimeError):  # how a worker died
        text = f"{text}: {error.__cause__}"
    elif "exited unexpectedly" in text:  # torch has noticed that before the signal's message
        text = ": ".join([text, *_ends_of_workers(error)])
    return " ".join(text.split()) or reason_of(error)


def _ends_of_workers(error: BaseException) -> list[str]:
    """Names of the signals that ended workers of the loader in an error's traceback."""
    loaders = {
        id(frame.f_locals["self"]): frame.f_locals["self"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == _LOADING and "self" in frame.f_locals
    }
    workers = [worker for loader in loaders.values() for worker in getattr(loader, "_workers", ())]
    codes = {worker.exitcode for worker in workers if (worker.exitcode or 0) < 0}
    return sorted(filter(None, (signal.strsignal(-code) for code in codes)))
