"""When a run saves its state, how without making it wait, and which of its files it keeps."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from yacs.config import CfgNode

from utils.checkpoint import (
    checkpoints_in,
    epoch_path,
    inside_path,
    is_inside,
    save_checkpoint,
    training_state,
)
from utils.distributed import any_process, largest_over_processes, raise_everywhere, rank
from utils.files import remove
from utils.sharded_checkpoint import SUFFIX, save_tensors, training_tensors
from utils.sharding import is_sharded, local_part
from utils.watch import step

_MOMENT = 1.0  # seconds after which processes that wait tell each other
_INSIDE_KEPT = 2  # the newest, and one should that be damaged


class BrokenWeightsError(ValueError):
    """A weight or moment is not finite."""


class Saver:
    """Saves the state of a run; `report` is told of each file that is whole.

    Call its methods in all processes. The first writes, in the background and one file at a time;
    of a sharded model each process writes its part.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Any],
        cfg: CfgNode,
        report: Callable[[str], None],
        classes: Sequence[str] = (),
    ) -> None:
        self.folder, self.parts, self.cfg, self.report = folder, parts, cfg, report
        self.classes = classes
        self.device = next(parts["model"].parameters()).device
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        sharded = is_sharded(parts["model"])
        self.group = distributed.new_group(backend="gloo") if sharded else None
        self.latest = time.monotonic()

    def is_late(self) -> bool:
        """Whether SAVE_MINUTES have passed since the latest save."""
        return 0 < self.cfg.SAVE_MINUTES * 60 < time.monotonic() - self.latest

    def save_epoch(self, epoch: int) -> None:
        """Save at the end of an epoch."""
        self.save(epoch_path(self.folder, epoch))

    def save_best(self) -> None:
        """Save as the best so far."""
        self.save(self.folder / "best.pth")

    def save_inside(self) -> None:
        """Save inside an epoch."""
        update = self.parts["lr_scheduler"].num_steps
        self.save(inside_path(self.folder, self.parts["progress"].epoch, update))

    def save(self, path: Path) -> None:
        """Copy the state to host memory and write it while training goes on.

        Waits for the file before, and raises its ValueError where that could not be written.
        BrokenWeightsError where a weight or moment is not finite: nothing is written then.
        """
        self.wait()
        self.latest = time.monotonic()
        model, optimizer = self.parts["model"], self.parts["optimizer"]
        tensors = training_tensors(model, optimizer)
        broken = not _all_finite(tensors, self.device)
        if largest_over_processes(broken, self.device):
            raise BrokenWeightsError(
                f"{path} is not written: weights or moments are not finite, training has diverged "
                "(try a lower TRAIN.BASE_LR)"
            )
        if is_sharded(model):
            path = path.with_suffix(SUFFIX)
            state = on_host(training_state(self.parts, self.cfg, self.classes))
            write_rest = functools.partial(save_checkpoint, state=state)
            self.pending = save_tensors(path, tensors, write_rest, self.group, self.writer)
            self.pending.add_done_callback(lambda done: self._finish(path, done))
        elif rank() == 0:
            state = on_host(training_state(self.parts, self.cfg, self.classes))
            self.pending = self.writer.submit(self._write, path, state)

    def wait(self) -> None:
        """Wait until the file is whole; ValueError where it could not be written.

        Call it in all processes: they wait together, however long writing takes, and get on.
        """
        while any_process(self._is_writing()):
            step()
        pending, self.pending = self.pending, None
        failure = pending.exception() if pending is not None else None
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

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        save_checkpoint(path, state)
        self._finish(path)

    def _finish(self, path: Path, done: Future[None] | None = None) -> None:
        if rank() == 0 and (done is None or done.exception() is None):
            self.report(f"saved {path}")
            keep(self.folder, self.cfg.KEEP_LAST, self.cfg.KEEP_EVERY)


def keep(folder: Path, last: int, every: int) -> None:
    """Remove checkpoints that nobody goes on from.

    One inside an epoch goes when two newer ones are there; of those at ends of epochs the `last`
    stay (0: all), and those of every `every`-th epoch, from the first.
    """
    at_ends = 0
    for index, path in enumerate(checkpoints_in(folder)):
        if is_inside(path):
            superseded = index >= _INSIDE_KEPT
        else:
            at_ends += 1
            epoch = int(path.stem.removeprefix("ckpt_epoch_"))
            superseded = 0 < last < at_ends and not (every and epoch % every == 0)
        if superseded:
            remove(path)


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
