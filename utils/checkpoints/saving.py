"""When a run saves its state, how without making it wait, and which of its files it keeps."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from utils.checkpoints.contents import read_back, save_checkpoint
from utils.checkpoints.names import (
    BEST,
    SHARDED_SUFFIX,
    checkpoints_in,
    epoch_path,
    inside_path,
    is_inside,
)
from utils.checkpoints.reading import Content
from utils.checkpoints.sharded import save_tensors, training_tensors
from utils.checkpoints.state import TrainState, training_content
from utils.files import RunFolder, remove, write_again
from utils.messages import reason_of
from utils.processes.group import (
    any_process,
    gloo_group,
    largest_over_processes,
    raise_everywhere,
    rank,
    together,
)
from utils.processes.heartbeat import step
from utils.processes.sharding import is_sharded, local_part

_MOMENT = 1.0  # seconds after which processes that wait tell each other
_INSIDE_KEPT = 2  # the newest, and one should that be damaged


class BrokenWeightsError(ValueError):
    """A weight or moment is not finite."""


class Saver:
    """Saves the state of a run; `report` is told of each file that is whole, `warn` of troubles.

    Call its methods in all processes. The first writes, in the background and one file at a time;
    of a sharded model each process writes its part. The first file is read back as a whole, of
    later ones the checksums are compared: what resume could not read is an error now.
    """

    def __init__(
        self,
        output: RunFolder,
        state: TrainState,
        cfg: CfgNode,
        report: Callable[[str], None],
        warn: Callable[[str], None],
        classes: Sequence[str] = (),
    ) -> None:
        self.output, self.state, self.cfg = output, state, cfg
        self.report, self.warn = report, warn
        self.classes = classes
        self.device = next(state.model.parameters()).device
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.num_written = 0
        sharded = is_sharded(state.model)
        self.group = gloo_group() if sharded else None
        self.latest = time.monotonic()

    def is_late(self) -> bool:
        """Whether SAVE_MINUTES have passed since the latest save."""
        return 0 < self.cfg.SAVE_MINUTES * 60 < time.monotonic() - self.latest

    def save_epoch(self, epoch: int, due: bool = True, best: bool = False) -> None:
        """Save at the end of an epoch where that is due, and as the best so far."""
        # The best first: a run that is killed between the two trains and judges the epoch again.
        paths = [self.output.path / BEST] * best + [epoch_path(self.output.path, epoch)] * due
        if is_sharded(self.state.model):
            for path in paths:
                self.save(path)
        elif paths:
            self.save(*paths)

    def save_inside(self) -> None:
        """Save inside an epoch."""
        position = self.state.position
        self.save(inside_path(self.output.path, position.epoch, position.update))

    def save(self, path: Path, *others: Path) -> None:
        """Copy the state to host memory and write it while training goes on, under each name.

        Waits for the file before, and raises its ValueError where that could not be written.
        BrokenWeightsError where a weight or moment is not finite: nothing is written then.
        """
        self.wait()
        together(f"{self.output.path} cannot be written", self.output.require_own)
        self.latest = time.monotonic()
        model = self.state.model
        tensors = training_tensors(model, self.state.optimizer)
        broken = not _all_finite(tensors, self.device)
        if largest_over_processes(broken, self.device):
            raise BrokenWeightsError(
                f"{path} is not written: weights or moments are not finite, training has diverged "
                "(try a lower TRAIN.BASE_LR)"
            )
        if is_sharded(model):
            path = path.with_suffix(SHARDED_SUFFIX)
            content = on_host(training_content(self.state, self.cfg, self.classes))
            write_rest = functools.partial(save_checkpoint, content=content)
            written = save_tensors(path, tensors, write_rest, self.group, self.writer)
            self.pending = self.writer.submit(self._finish, path, written)
        elif rank() == 0:
            copy = [on_host(training_content(self.state, self.cfg, self.classes))]
            self.pending = self.writer.submit(self._write, copy, path, others)

    def wait(self) -> None:
        """Wait until the file is whole; ValueError where it could not be written.

        Call it in all processes: they wait together, however long writing takes, and get on.
        """
        while any_process(self._is_writing()):
            step()
        pending, self.pending = self.pending, None
        failure = pending.exception() if pending is not None else None
        if isinstance(failure, OSError | MemoryError):
            failure = ValueError(f"{self.output.path}: {reason_of(failure)}")
        if failure is not None and not isinstance(failure, ValueError):
            raise failure
        raise_everywhere(failure)

    def has_failed(self) -> bool:
        """Whether a file could not be written, as `wait` would tell, without waiting for it."""
        pending = self.pending
        return pending is not None and pending.done() and pending.exception() is not None

    def _is_writing(self) -> bool:
        """Whether the file is still not whole, after a moment."""
        return self.pending is not None and bool(futures.wait([self.pending], _MOMENT).not_done)

    def _write(self, copy: list[Content], path: Path, others: Sequence[Path]) -> None:
        """Write the one content in `copy`, which is given up before the file is read back."""
        save_checkpoint(path, copy.pop())
        for other in others:
            write_again(other, path)
        self._finish((path, *others)[-1])

    def _finish(self, path: Path, written: Future[None] | None = None) -> None:
        """Read a file back and remove those that nobody needs any more."""
        if written is not None:
            written.result()
        if rank() == 0:
            read_back(path, whole=self.num_written == 0)
            self.num_written += 1
            self.report(f"saved {path}")
            keep(self.output.path, self.cfg.KEEP_LAST, self.cfg.KEEP_EVERY, self.warn)


def keep(folder: Path, last: int, every: int, warn: Callable[[str], None]) -> None:
    """Remove checkpoints that nobody goes on from; `warn` is told of those that do not go.

    One inside an epoch goes when two newer ones are there; of those at ends of epochs the `last`
    stay (0: all), and those of every `every`-th epoch, from the first.
    """
    at_ends = 0
    try:
        found = checkpoints_in(folder)
    except OSError as error:
        warn(f"{folder} cannot be listed, old checkpoints stay: {error.strerror}")
        return
    for index, path in enumerate(found):
        if is_inside(path):
            superseded = index >= _INSIDE_KEPT
        else:
            at_ends += 1
            epoch = int(path.stem.removeprefix("ckpt_epoch_"))
            superseded = 0 < last < at_ends and not (every and epoch % every == 0)
        if superseded:
            try:
                remove(path)
            except OSError as error:
                warn(f"{path} is no longer needed and cannot be removed: {error.strerror}")


def on_host(value: Any) -> Any:
    """A copy in host memory of nested dicts and lists of tensors and plain values."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [on_host(item) for item in value]
    return value


def _all_finite(tensors: Mapping[str, Tensor], device: torch.device) -> bool:
    """Whether all numbers are, and not too large for float32's norm: read once, on the device."""
    values = [local_part(value) for value in tensors.values() if value.is_floating_point()]
    norms = torch._foreach_norm(values)
    return bool(torch.stack([norm.float().to(device) for norm in norms]).isfinite().all())
