"""Detect lost processes: each publishes a beat and its progress every second."""

import inspect
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from torch.utils.data import DataLoader

from utils.processes.comparison import ranks_in_words
from utils.processes.group import rank, shared_store, world_size
from utils.processes.signals import end_at_once, requested

STATUS = 3  # exit status of a process that waits in vain for others or for data
_BEAT = 1.0  # seconds
_PATIENCE = 4.0  # seconds without a beat after which a process counts as dead or stopped
_HURRY = 10.0  # seconds that a process which a signal asks to stop waits for data at least
_ROOT = Path(__file__).parent.parent
_LOADING = inspect.getfile(DataLoader)

Item = TypeVar("Item")


class Heartbeat:
    """Beats of all processes in the launcher's store, and threads that write and evaluate them.

    Where this process makes no progress for `timeout` seconds and sees none in others for half of
    that, it reports which are missing and ends; before its first step (folders are listed,
    checkpoints read) only if one is silent. A run of one process only limits its wait for data.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        # Look at others early enough to tell dead processes from waiting ones.
        self.looks_after = min(timeout / 2, timeout - _PATIENCE - 2 * _BEAT)
        self.steps = self.beats = 0
        self.explains = False
        self.seen: dict[int, tuple[bytes, float]] = {}  # latest beat of a process, and its time
        # Times of this process's last progress, of progress seen in any, of the store's last reply.
        self.moment = self.got_on = self.answered = time.monotonic()
        self.loading = -1, self.moment  # step that waits for data (-1: none), and since when
        self.longest_wait = 0.0  # longest wait for data that arrived, in seconds
        self.asked: float | None = None  # time at which a signal was first seen
        self.done = threading.Event()
        tasks = [self._judge]
        if world_size() > 1:
            self.store = shared_store("heartbeat")
            self._beat()
            tasks.append(self._talk)
        for task in tasks:
            threading.Thread(target=task, name="heartbeat", daemon=True).start()

    def step(self) -> None:
        """Record that this process made progress."""
        self.steps += 1
        self.moment = time.monotonic()

    def silent(self) -> str:
        """Words for the processes or the store that show no sign of life; empty where all do."""
        now = time.monotonic()
        if now - self.answered > _PATIENCE:
            return "the launcher's store (torchrun's, else rank 0's) does not answer"
        silent = [other for other in self.seen if now - self.seen[other][1] > _PATIENCE]
        if silent:
            who = ranks_in_words(silent)
            return f"{who} gave no sign of life for {_PATIENCE:.0f} s: dead or stopped"
        return ""

    def missing(self) -> str:
        """Words for the processes that are silent, else for those that are behind the others."""
        if silent := self.silent():
            return silent
        steps = {other: int(beat.split()[1]) for other, (beat, _) in self.seen.items()}
        behind = [other for other in steps if steps[other] < max(steps.values())]
        if behind:
            return f"{ranks_in_words(behind)} did not get on while the others waited"
        return "all processes wait, though each gives signs of life"

    def explain(self) -> str:
        """Watch the beats long enough to recognize dead processes; return `missing()`."""
        self.explains = True
        time.sleep(_PATIENCE + 2 * _BEAT)
        return self.missing()

    def _talk(self) -> None:
        """Publish beats, in a thread of its own since the store may block."""
        while not self.done.wait(_BEAT):
            try:
                self._beat()
                # Read other beats only when needed: all processes share one store.
                if self.explains or time.monotonic() - self.moment > self.looks_after:
                    self._look()
                self.answered = time.monotonic()
            except RuntimeError:  # the store is gone for good
                return

    def _judge(self) -> None:
        while not self.done.wait(_BEAT):
            now = time.monotonic()
            loading = self._waits_for_data(now)
            if (number := requested()) and self._wastes(loading, now):
                why = f"ended by {signal.Signals(number).name} while no data came"
                end_at_once(_said(f"{why} for {loading:.0f} s"), 128 + number)
            waited = now - self.moment
            if world_size() == 1:
                if loading > self.timeout:
                    leave("no data came from the loader", f"for {loading:.0f} s")
            elif waited > self.timeout and now - self.got_on > self.timeout / 2 and self._begun():
                leave(self.missing(), f"no progress for {waited:.0f} s")

    def _begun(self) -> bool:
        """Whether slow processes count as lost: before the first step only silent ones do."""
        return self.steps > 0 or bool(self.silent())

    def _wastes(self, loading: float, now: float) -> bool:
        """Whether this process, asked to stop, has waited too long for data to expect any."""
        if self.asked is None:
            self.asked = now
        return min(loading, now - self.asked) > max(_HURRY, 2 * self.longest_wait)

    def _waits_for_data(self, now: float) -> float:
        """Seconds for which the main thread has waited for the same data; 0 where it does not."""
        steps = self.steps if any(file == _LOADING for file, _ in _stack()) else -1
        before, since = self.loading
        if steps != before:
            if before >= 0:
                self.longest_wait = max(self.longest_wait, now - since)
            self.loading = steps, now
        return now - self.loading[1] if steps >= 0 else 0.0

    def _beat(self) -> None:
        self.beats += 1
        self.store.set(str(rank()), f"{self.beats} {self.steps}")

    def _look(self) -> None:
        now = time.monotonic()
        for other in range(world_size()):
            key = str(other)
            beat = self.store.get(key) if self.store.check([key]) else b"0 0"
            before, since = self.seen.get(other, (beat, now))
            if beat.split()[1] != before.split()[1]:
                self.got_on = now
            self.seen[other] = (beat, now if beat != before else since)


_heartbeats: list[Heartbeat] = []


def start(timeout: float) -> None:
    """Start to watch this process and the others; `timeout` in seconds."""
    stop()
    _heartbeats.append(Heartbeat(timeout))


def stop() -> None:
    """Stop watching."""
    while _heartbeats:
        _heartbeats.pop().done.set()


def step() -> None:
    """Record that this process made progress."""
    for heartbeat in _heartbeats:
        heartbeat.step()


def stepping(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, and record progress at each."""
    for item in items:
        step()
        yield item


def lost(error: RuntimeError) -> str:
    """Words for the missing processes if the error is one of communication; else empty."""
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "store", "watchdog")
    if (
        world_size() == 1
        or not _heartbeats
        or not any(word in str(error).lower() for word in words)
    ):
        return ""
    return _heartbeats[0].explain()


def leave(missing: str, why: str) -> None:
    """End this process at once with status 3 and one line, also while it waits in C."""
    own = [
        f"{Path(file).name}, line {line}"
        for file, line in _stack()
        if Path(file).is_relative_to(_ROOT) and "site-packages" not in file
    ]
    line = f"error: {missing} ({why}; this process is at {own[0]})"
    end_at_once(_said(line), STATUS)


def _stack() -> Iterator[tuple[str, int]]:
    """Files and lines of the main thread's stack, innermost first; no file is read."""
    main = sys._current_frames()[threading.main_thread().ident or 0]
    for frame, line in traceback.walk_stack(main):
        yield frame.f_code.co_filename, line


def _said(line: str) -> str:
    return f"rank {rank()}: {line}" if world_size() > 1 else line
