"""Logs of a run: console, a file per rank, metrics.jsonl and TensorBoard."""

import contextlib
import datetime
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from termcolor import colored
from tqdm import tqdm

from utils.messages import reason_of
from utils.streams import append, lose_failures

Item = TypeVar("Item")
Record = dict[str, float]  # figures of an update, by name

# Figures of metrics.jsonl that are not drawn: where an update stands, times, means of an epoch.
NOT_DRAWN = ("update", "index", "num_updates", "time", "time_mean", "loss_mean", "grad_norm_mean")


class _ConsoleHandler(logging.Handler):
    """Print above a progress bar, in colour on terminals."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, with its time."""
        moment = datetime.datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S")
        colour = "green" if record.levelno < logging.WARNING else "yellow"
        prefix = colored(f"[{moment}]", colour) if sys.stdout.isatty() else f"[{moment}]"
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        tqdm.write(f"{prefix} {level}{record.getMessage()}", file=sys.stdout)
        sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """Report once on standard error that the log cannot be written; let the run continue."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Handle a record that could not be written."""
        if not self.failed:
            self.failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def train_line(record: Record, epoch: int, epochs: int) -> str:
    """Format a report as a line of the published code; `eta` is for the end of the epoch."""
    left = record["time_mean"] * (record["num_updates"] - record["index"] - 1)
    return (
        f"Train: [{epoch}/{epochs}][{record['index']}/{record['num_updates']}]\t"
        f"eta {datetime.timedelta(seconds=int(left))} lr {record['lr']:.6f}\t"
        f"time {record['time']:.4f} ({record['time_mean']:.4f})\t"
        f"loss {record['loss']:.4f} ({record['loss_mean']:.4f})\t"
        f"grad_norm {record['grad_norm']:.4f} ({record['grad_norm_mean']:.4f})\t"
        f"mem {record['memory_mb']:.0f}MB"
    )


def progress_bar(
    items: Iterable[Item], name: str, rank: int, total: int | None = None
) -> Iterable[Item]:
    """Show a progress bar on standard error, on rank 0 and terminals only."""
    if rank != 0 or not sys.stderr.isatty():
        return items
    bar: Iterable[Item] = tqdm(items, name, total, leave=False, dynamic_ncols=True)
    return bar


class RunLog:
    """All logs of one process, in `folder`; figures and pictures are of rank 0 only.

    The first failure to write each of them is a warning. The run continues as long as checkpoints
    can be written: figures are kept until they can be written, pictures and curves are lost.
    The run starts at `first_update` and `first_epoch`: figures of these and later updates and
    validations, left by a run that was stopped after its last checkpoint, are replaced.
    """

    def __init__(
        self, folder: Path, rank: int, first_update: int, first_epoch: int, epochs: int
    ) -> None:
        self.folder, self.rank, self.epochs = folder, rank, epochs
        self.current_epoch = 0
        self.update = max(first_update - 1, 0)  # the latest
        self.skipped = 0
        self.unwritten = b""  # figures that could not be written yet
        self.failed: set[str] = set()
        self.logger = _create_logger(folder, rank)
        self.info = self.logger.info
        self.detail = self.logger.debug  # for the file only
        self.warning = self.logger.warning
        if rank == 0:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, for rank 0 only

            _forget_from(folder / "metrics.jsonl", first_update, first_epoch)
            self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_update)
            threading.excepthook = _say_unless_curves

    @contextlib.contextmanager
    def epoch(self, epoch: int, share: float = 1.0) -> Iterator[None]:
        """Set the epoch that reports name, and log how long the `with` block takes.

        `share` is the part of the epoch that the block trains, for the estimate of the time left.
        """
        self.current_epoch, self.skipped = epoch, 0
        start = time.perf_counter()
        yield
        took = datetime.timedelta(seconds=int(time.perf_counter() - start))
        left = datetime.timedelta(
            seconds=int(took.total_seconds() / share * (self.epochs - epoch - 1))
        )
        self.info("EPOCH %d training takes %s, about %s left", epoch, took, left)

    def report(self, record: Record) -> None:
        """Log an update's figures, append them to metrics.jsonl and to TensorBoard's curves."""
        self.info(train_line(record, self.current_epoch, self.epochs))
        self.update = int(record["update"])
        if record["skipped"] > self.skipped:
            self.warning(
                "%d update(s) of this epoch had a loss or gradient that is not finite, and changed "
                "nothing",
                record["skipped"],
            )
        self.skipped = int(record["skipped"])
        drawn = {name: record[name] for name in record if name not in NOT_DRAWN}
        self._record(record, {f"train/{name}": value for name, value in drawn.items()})

    def progress(self, updates: range) -> Iterable[int]:
        """The updates of an epoch, with a progress bar."""
        return progress_bar(updates, f"epoch {self.current_epoch}", self.rank)

    def validated(self, line: str, loss: float, acc1: float, acc5: float) -> None:
        """Log a validation, append it to metrics.jsonl and to TensorBoard's curves."""
        self.info("%s Loss %.4f", line, loss)
        figures = {"val_loss": loss, "val_acc1": acc1, "val_acc5": acc5}
        drawn = {name.replace("_", "/", 1): figures[name] for name in figures}
        self._record({"update": self.update} | figures, drawn)

    def _record(self, figures: Record, curves: Record) -> None:
        """Append figures to metrics.jsonl and draw points of curves, on rank 0."""
        if self.rank:
            return
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in ({"epoch": self.current_epoch} | figures).items()
        }
        self.unwritten += json.dumps(known).encode() + b"\n"
        path = self.folder / "metrics.jsonl"
        with self._going_on(f"{path}"):
            append(path, self.unwritten)
            self.unwritten = b""
        with self._going_on("tensorboard"):
            for name, value in curves.items():
                self.board.add_scalar(name, value, self.update)

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Turn the first failure to write `what` into a warning; ignore further ones."""
        try:
            yield
        except OSError as error:
            if what not in self.failed:
                self.failed.add(what)
                self.warning("%s cannot be written: %s; training goes on", what, reason_of(error))

    def picture(self, name: str, picture: Image.Image) -> None:
        """Write NAME.png and show it in TensorBoard."""
        if self.rank:
            return
        path = self.folder / f"{name}.png"
        with self._going_on(f"{path}"):
            picture.save(path)
            self.info("drew %s", path)
        with self._going_on("tensorboard"):
            self.board.add_image(name, np.asarray(picture), self.update, dataformats="HWC")
            self.board.flush()

    def close(self) -> None:
        """Flush and close all files."""
        if self.rank == 0:
            with self._going_on("tensorboard"):
                self.board.close()
        _close(self.logger)


def _create_logger(folder: Path, rank: int) -> logging.Logger:
    """A logger that writes log_rank<rank>.txt in `folder` and, on rank 0, to the console."""
    logger = logging.getLogger(f"simmim.{folder.resolve()}.{rank}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    _close(logger)
    path = folder / f"log_rank{rank}.txt"
    file = _FileHandler(path, encoding="utf-8", errors="backslashreplace")  # any name can be logged
    file.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s"))
    logger.addHandler(file)
    if rank == 0:
        logger.addHandler(_ConsoleHandler(logging.INFO))
    lose_failures()  # the console may fail: the file has the log
    return logger


def _close(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # the last lines cannot be written, as warned before
            handler.close()


def _say_unless_curves(failure: threading.ExceptHookArgs) -> None:
    """Report a thread's error unless TensorBoard could not write, which `RunLog` reports."""
    ours = type(failure.thread).__module__.startswith("tensorboard.")
    if not ours or not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _forget_from(path: Path, first_update: int, first_epoch: int) -> None:
    """Drop lines that this run will write again, incomplete lines and invalid ones."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if line.endswith("\n") and _is_before(line, first_update, first_epoch)
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _is_before(line: str, first_update: int, first_epoch: int) -> bool:
    try:
        record: Record = json.loads(line)
        # A validation follows all updates of its epoch: it is replaced if the epoch is.
        if "val_loss" in record:
            return bool(record["epoch"] < first_epoch)
        return bool(record["update"] < first_update)
    except (ValueError, KeyError, TypeError, RecursionError):  # left by a crash
        return False
