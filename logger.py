"""What a run tells: console, a file per rank, metrics.jsonl and TensorBoard."""

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

SCALARS = (
    "loss",
    "lr",
    "grad_norm",
    "images_per_second",
    "data_wait",
    "memory_mb",
    "skipped",
    "scale_adjustments",
    "broken_pictures",
)


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar, in colour on terminals."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, with its time."""
        moment = datetime.datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S")
        colour = "green" if record.levelno < logging.WARNING else "yellow"
        prefix = colored(f"[{moment}]", colour) if sys.stdout.isatty() else f"[{moment}]"
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        tqdm.write(f"{prefix} {level}{record.getMessage()}", file=sys.stdout)
        sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """Says once on standard error that the log cannot be written, and lets the run go on."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called where a record could not be written."""
        if not self.failed:
            self.failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def train_line(record: Record, epoch: int, epochs: int) -> str:
    """One line per report, in the reference's format; `eta` is that of the epoch."""
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
    """Show a progress bar where a person is looking, on standard error."""
    if rank != 0 or not sys.stderr.isatty():
        return items
    bar: Iterable[Item] = tqdm(items, name, total, leave=False, dynamic_ncols=True)
    return bar


class RunLog:
    """Everything one process of a run tells, into `folder`; figures and pictures from rank 0.

    What cannot be written here is a warning, the first time, and does not end a run whose
    checkpoints can: figures are kept until there is room for them, pictures and curves are lost.
    `first_update` and `first_epoch` are where the run starts: figures of later updates and
    validations, left by a run that was stopped after its last checkpoint, are replaced.
    """

    def __init__(
        self, folder: Path, rank: int, first_update: int, first_epoch: int, epochs: int
    ) -> None:
        self.folder, self.rank, self.epochs = folder, rank, epochs
        self.current_epoch = 0
        self.update = max(first_update - 1, 0)  # the latest
        self.skipped = 0
        self.unwritten = b""  # figures that there was no room for
        self.failed: set[str] = set()
        self.logger = _create_logger(folder, rank)
        self.info = self.logger.info
        self.detail = self.logger.debug  # for the file alone
        self.warning = self.logger.warning
        if rank == 0:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, one rank needs it

            _forget_from(folder / "metrics.jsonl", first_update, first_epoch)
            self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_update)
            threading.excepthook = _say_unless_curves

    @contextlib.contextmanager
    def epoch(self, epoch: int) -> Iterator[None]:
        """Surround the training of one epoch: names it in reports, times it."""
        self.current_epoch, self.skipped = epoch, 0
        start = time.perf_counter()
        yield
        took = datetime.timedelta(seconds=int(time.perf_counter() - start))
        left = took * (self.epochs - epoch - 1)
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
        if self.rank == 0:
            self._append({"epoch": self.current_epoch} | record)
            self._draw_curves({f"train/{name}": record[name] for name in SCALARS})

    def progress(self, updates: range) -> Iterable[int]:
        """The updates of an epoch, under a progress bar."""
        return progress_bar(updates, f"epoch {self.current_epoch}", self.rank)

    def validated(self, line: str, loss: float, acc1: float, acc5: float) -> None:
        """Log a validation, append it to metrics.jsonl and to TensorBoard's curves."""
        self.info("%s Loss %.4f", line, loss)
        if self.rank == 0:
            figures = {"val_loss": loss, "val_acc1": acc1, "val_acc5": acc5}
            self._append({"epoch": self.current_epoch, "update": self.update} | figures)
            self._draw_curves({name.replace("_", "/", 1): figures[name] for name in figures})

    def _append(self, record: Record) -> None:
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self.unwritten += json.dumps(known).encode() + b"\n"
        path = self.folder / "metrics.jsonl"
        with self._going_on(f"{path}"):
            append(path, self.unwritten)
            self.unwritten = b""

    def _draw_curves(self, values: dict[str, float]) -> None:
        with self._going_on("tensorboard"):
            for name, value in values.items():
                self.board.add_scalar(name, value, self.update)

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Inside, a failure to write is a warning, and only the first time."""
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
    file = _FileHandler(folder / f"log_rank{rank}.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s"))
    logger.addHandler(file)
    if rank == 0:
        logger.addHandler(_ConsoleHandler(logging.INFO))
    lose_failures()  # the file has it
    return logger


def _close(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # no room for the last lines, as has been said
            handler.close()


def _say_unless_curves(failure: threading.ExceptHookArgs) -> None:
    """Leave it to `RunLog` to tell of TensorBoard's thread that could not write."""
    ours = type(failure.thread).__module__.startswith("tensorboard.")
    if not ours or not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _forget_from(path: Path, first_update: int, first_epoch: int) -> None:
    """Drop the lines that this run is about to write again, and a torn last line."""
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
        # A validation follows the updates of its epoch, and is part of what completes it.
        if "val_loss" in record:
            return bool(record["epoch"] < first_epoch)
        return bool(record["update"] < first_update)
    except (ValueError, KeyError, TypeError, RecursionError):  # what a crash has left there
        return False
