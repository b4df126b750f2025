"""Which process is lost: each tells the others every second that it lives, and how far it is."""

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

from utils.processes.group import rank, shared_store, world_size
from utils.processes.signals import end_at_once, requested

STATUS = 3  # exit status of a process that waits for what will not come
_BEAT = 1.0  # seconds
_PATIENCE = 4.0  # without a beat for so long, a process is dead or stopped
_HURRY = 10.0  # at least so long a process that a signal asks to stop waits for data
_ROOT = Path(__file__).parent.parent
_LOADING = inspect.getfile(DataLoader)

Item = TypeVar("Item")


class Heartbeat:
    """Beats of all processes, in the launcher's store, and threads that tell and judge them.

    Where no process has got on for `timeout` seconds, this one says which are missing and ends.
    Before the first step (a folder is listed, a checkpoint read) that takes silence besides. One
    process alone computes as long as it likes, but waits no longer than that for data.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        # Others are looked at so early that who is dead can be told from who waits.
        self.looks_after = min(timeout / 2, timeout - _PATIENCE - 2 * _BEAT)
        self.steps = self.beats = 0
        self.explains = False
        self.seen: dict[int, tuple[bytes, float]] = {}  # latest beat of a process, since when
        # When this process got on, when another was seen to, when the store last answered.
        self.moment = self.got_on = self.answered = time.monotonic()
        self.loading = -1, self.moment  # step after which it waits for data, since when
        self.longest_wait = 0.0  # for data that came
        self.asked: float | None = None  # since when a signal asks it to stop
        self.done = threading.Event()
        tasks = [self._judge]
        if world_size() > 1:
            self.store = shared_store("heartbeat")
            self._beat()
            tasks.append(self._talk)
        for task in tasks:
            threading.Thread(target=task, name="heartbeat", daemon=True).start()

    def step(self) -> None:
        """This process has got on."""
        self.steps += 1
        self.moment = time.monotonic()

    def silent(self) -> str:
        """Which processes show no sign of life; nothing where all do."""
        now = time.monotonic()
        if now - self.answered > _PATIENCE:
            return "the launcher's store (torchrun's, else rank 0's) does not answer"
        silent = [other for other in self.seen if now - self.seen[other][1] > _PATIENCE]
        if silent:
            return f"{_ranks(silent)} gave no sign of life for {_PATIENCE:.0f} s: dead or stopped"
        return ""

    def missing(self) -> str:
        """Which processes are lost, as far as their beats tell."""
        if silent := self.silent():
            return silent
        steps = {other: int(beat.split()[1]) for other, (beat, _) in self.seen.items()}
        behind = [other for other in steps if steps[other] < max(steps.values())]
        if behind:
            return f"{_ranks(behind)} did not get on while the others waited"
        return "all processes wait, though each gives signs of life"

    def explain(self) -> str:
        """Look long enough to tell who is dead, and say which are missing."""
        self.explains = True
        time.sleep(_PATIENCE + 2 * _BEAT)
        return self.missing()

    def _talk(self) -> None:
        """Tell the others; the store may keep this thread waiting."""
        while not self.done.wait(_BEAT):
            try:
                self._beat()
                # At the others only where there is a reason: they are many, the store is one.
                if self.explains or time.monotonic() - self.moment > self.looks_after:
                    self._look()
                self.answered = time.monotonic()
            except RuntimeError:  # the store is gone, and comes not back
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
                leave(self.missing(), f"nothing got on for {waited:.0f} s")

    def _begun(self) -> bool:
        """Whether who gets on slowly is lost: before the first step only who is silent is."""
        return self.steps > 0 or bool(self.silent())

    def _wastes(self, loading: float, now: float) -> bool:
        """Whether a process that is to stop waits for data which, as it seems, will not come."""
        if self.asked is None:
            self.asked = now
        return min(loading, now - self.asked) > max(_HURRY, 2 * self.longest_wait)

    def _waits_for_data(self, now: float) -> float:
        """For how many seconds the main thread has been waiting for the same data."""
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
    """Watch this process and the others from now on; `timeout` in seconds."""
    stop()
    _heartbeats.append(Heartbeat(timeout))


def stop() -> None:
    """No longer watch."""
    while _heartbeats:
        _heartbeats.pop().done.set()


def step() -> None:
    """This process has got on."""
    for heartbeat in _heartbeats:
        heartbeat.step()


def stepping(items: Iterable[Item]) -> Iterator[Item]:
    """The items; each means that this process has got on."""
    for item in items:
        step()
        yield item


def lost(error: RuntimeError) -> str:
    """Which processes are missing, where an error came from their silence; else nothing."""
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "store", "watchdog")
    if (
        world_size() == 1
        or not _heartbeats
        or not any(word in str(error).lower() for word in words)
    ):
        return ""
    return _heartbeats[0].explain()


def leave(missing: str, why: str) -> None:
    """End this process at once, with one line: whatever it waits for will not come."""
    own = [
        f"{Path(file).name}, line {line}"
        for file, line in _stack()
        if Path(file).is_relative_to(_ROOT) and "site-packages" not in file
    ]
    line = f"error: {missing} ({why}; this process is at {own[0]})"
    end_at_once(_said(line), STATUS)


def _stack() -> Iterator[tuple[str, int]]:
    """Files and lines where the main thread is, innermost first; no file is looked at."""
    main = sys._current_frames()[threading.main_thread().ident or 0]
    for frame, line in traceback.walk_stack(main):
        yield frame.f_code.co_filename, line


def _said(line: str) -> str:
    return f"rank {rank()}: {line}" if world_size() > 1 else line


def _ranks(numbers: Iterable[int]) -> str:
    """Rank 3, ranks 1, 5."""
    names = [str(number) for number in numbers]
    return f"rank{'s' * (len(names) > 1)} {', '.join(names)}"
