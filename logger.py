"""What a run tells: console, a file per rank, metrics.jsonl and TensorBoard."""

import contextlib
import datetime
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from termcolor import colored
from tqdm import tqdm

Item = TypeVar("Item")

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


def train_line(record: dict[str, Any], epoch: int, epochs: int) -> str:
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
        self.logger = _create_logger(folder, rank)
        self.info = self.logger.info
        self.detail = self.logger.debug  # for the file alone
        self.warning = self.logger.warning
        if rank == 0:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, one rank needs it

            _forget_from(folder / "metrics.jsonl", first_update, first_epoch)
            self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_update)

    @contextlib.contextmanager
    def epoch(self, epoch: int) -> Iterator[None]:
        """Surround the training of one epoch: names it in reports, times it."""
        self.current_epoch, self.skipped = epoch, 0
        start = time.perf_counter()
        yield
        took = datetime.timedelta(seconds=int(time.perf_counter() - start))
        left = took * (self.epochs - epoch - 1)
        self.info("EPOCH %d training takes %s, about %s left", epoch, took, left)

    def report(self, record: dict[str, Any]) -> None:
        """Log an update's figures, append them to metrics.jsonl and to TensorBoard's curves."""
        self.info(train_line(record, self.current_epoch, self.epochs))
        self.update = record["update"]
        if record["skipped"] > self.skipped:
            self.warning(
                "%d update(s) of this epoch had a loss or gradient that is not finite, and changed "
                "nothing",
                record["skipped"],
            )
        self.skipped = record["skipped"]
        if self.rank == 0:
            self._append({"epoch": self.current_epoch} | record)
            for name in SCALARS:
                self.board.add_scalar(f"train/{name}", record[name], self.update)

    def progress(self, updates: range) -> Iterable[int]:
        """The updates of an epoch, under a progress bar."""
        return progress_bar(updates, f"epoch {self.current_epoch}", self.rank)

    def validated(self, line: str, loss: float, acc1: float, acc5: float) -> None:
        """Log a validation, append it to metrics.jsonl and to TensorBoard's curves."""
        self.info("%s Loss %.4f", line, loss)
        if self.rank == 0:
            figures = {"val_loss": loss, "val_acc1": acc1, "val_acc5": acc5}
            self._append({"epoch": self.current_epoch, "update": self.update} | figures)
            for name, value in figures.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, self.update)

    def _append(self, record: dict[str, Any]) -> None:
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(known) + "\n")

    def picture(self, name: str, picture: Image.Image) -> None:
        """Write NAME.png and show it in TensorBoard."""
        if self.rank:
            return
        path = self.folder / f"{name}.png"
        picture.save(path)
        self.board.add_image(name, np.asarray(picture), self.update, dataformats="HWC")
        self.board.flush()
        self.info("drew %s", path)

    def close(self) -> None:
        """Flush and close all files."""
        _close(self.logger)
        if self.rank == 0:
            self.board.close()


def _create_logger(folder: Path, rank: int) -> logging.Logger:
    """A logger that writes log_rank<rank>.txt in `folder` and, on rank 0, to the console."""
    logger = logging.getLogger(f"simmim.{folder.resolve()}.{rank}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    _close(logger)
    file = logging.FileHandler(folder / f"log_rank{rank}.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s"))
    logger.addHandler(file)
    if rank == 0:
        logger.addHandler(_ConsoleHandler(logging.INFO))
    return logger


def _close(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


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
        record: dict[str, Any] = json.loads(line)
        # A validation follows the updates of its epoch, and is part of what completes it.
        if "val_loss" in record:
            return bool(record["epoch"] < first_epoch)
        return bool(record["update"] < first_update)
    except (ValueError, KeyError, TypeError, RecursionError):  # what a crash has left there
        return False
