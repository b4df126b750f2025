"""Which process is lost: each tells the others every second that it lives, and how far it is."""

import datetime
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from torch import distributed

from utils.distributed import rank, world_size

STATUS = 3  # exit status of a process that another one has left alone
_BEAT = 1.0  # seconds
_PATIENCE = 4.0  # without a beat for so long, a process is dead or stopped
_ROOT = Path(__file__).parent.parent

Item = TypeVar("Item")


class Watch:
    """Beats of all processes, in the launcher's store, and a thread that looks at them.

    Where no process has got on for `timeout` seconds, this one says which are missing and ends.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.steps = 0
        self.moment = time.monotonic()
        self.seen: dict[int, tuple[bytes, float]] = {}  # latest beat of a process, since when
        self.got_on = self.moment  # when any process last did
        self.done = threading.Event()
        store = distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=datetime.timedelta(seconds=max(timeout, _PATIENCE)),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = distributed.PrefixStore(f"watch/{attempt}", store)
        self.beat(0)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def step(self) -> None:
        """This process has got on."""
        self.steps += 1
        self.moment = time.monotonic()

    def beat(self, number: int) -> None:
        """Tell the others."""
        self.store.set(str(rank()), f"{number} {self.steps}")

    def look(self) -> None:
        """Read the others' beats."""
        now = time.monotonic()
        for other in range(world_size()):
            key = str(other)
            beat = self.store.get(key) if self.store.check([key]) else b"0 0"
            before, since = self.seen.get(other, (b"", now))
            if beat != before:
                self.seen[other] = (beat, now)
                if beat.split()[1:] != before.split()[1:]:
                    self.got_on = now
            else:
                self.seen[other] = (before, since)

    def missing(self) -> str:
        """Which processes are lost, as far as their beats tell."""
        now = time.monotonic()
        silent = [other for other in self.seen if now - self.seen[other][1] > _PATIENCE]
        if silent:
            return f"{_ranks(silent)} gave no sign of life for {_PATIENCE:.0f} s: dead or stopped"
        steps = {other: int(beat.split()[1]) for other, (beat, _) in self.seen.items()}
        behind = [other for other in steps if steps[other] < max(steps.values())]
        if behind:
            return f"{_ranks(behind)} did not get on while the others waited"
        return "all processes wait, though each gives signs of life"

    def explain(self) -> str:
        """Look long enough to tell who is dead, and say which are missing."""
        try:
            end = time.monotonic() + _PATIENCE + 2 * _BEAT
            while time.monotonic() < end:
                self.look()
                time.sleep(_BEAT / 2)
            return self.missing()
        except RuntimeError:
            return "the launcher's store does not answer: its machine or process is lost"

    def _run(self) -> None:
        number = 0
        while not self.done.wait(_BEAT):
            number += 1
            try:
                self.beat(number)
                waited = time.monotonic() - self.moment
                if waited > self.timeout / 2:
                    self.look()
                quiet = time.monotonic() - self.got_on
                if waited > self.timeout and quiet > self.timeout / 2:
                    leave(self.missing(), f"nothing got on for {waited:.0f} s")
            except RuntimeError:
                if time.monotonic() - self.moment > self.timeout:
                    leave("the launcher's store does not answer", "this process waits")


_watch: list[Watch] = []


def start(timeout: float) -> None:
    """Watch the other processes from now on; `timeout` in seconds. Alone there is nothing to do."""
    stop()
    if world_size() > 1:
        _watch.append(Watch(timeout))


def stop() -> None:
    """No longer watch."""
    while _watch:
        _watch.pop().done.set()


def step() -> None:
    """This process has got on."""
    for watch in _watch:
        watch.step()


def stepping(items: Iterable[Item]) -> Iterator[Item]:
    """The items; each means that this process has got on."""
    for item in items:
        step()
        yield item


def lost(error: RuntimeError) -> str:
    """Which processes are missing, where an error came from their silence; else nothing."""
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "store", "watchdog")
    if not _watch or not any(word in str(error).lower() for word in words):
        return ""
    return _watch[0].explain()


def leave(missing: str, why: str) -> None:
    """End this process at once, with one line: whatever it waits for will not come."""
    own = [
        f"{Path(frame.filename).name}, line {frame.lineno}"
        for frame in traceback.extract_stack(sys._current_frames()[_main_thread()])
        if Path(frame.filename).is_relative_to(_ROOT)
    ]
    print(
        f"rank {rank()}: error: {missing} ({why}; this process is at {own[-1]}); "
        "the same command goes on from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(STATUS)


def _main_thread() -> int:
    return threading.main_thread().ident or 0


def _ranks(numbers: Iterable[int]) -> str:
    """Rank 3, ranks 1, 5."""
    names = [str(number) for number in numbers]
    return f"rank{'s' * (len(names) > 1)} {', '.join(names)}"
