"""The runs of a row: what is started, when it has finished, and the figures that it leaves."""

import json
import math
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from models import target_file
from tools.study.rows import Row, Scale
from utils.checkpoints.differences import changed_values, keys_with_effect
from utils.checkpoints.names import (
    SHARDED_SUFFIX,
    checkpoints_in,
    epoch_path,
    is_inside,
    place_of,
)
from utils.config import is_finetuning, keys_below, read_recipe, with_options
from utils.digest import digest_of, digest_of_file

ROOT = Path(__file__).parents[2]
# Keys that are compared beside those with an effect on what is learned.
_ALSO = ("SEED", "DATA.IMAGES_PER_CLASS", "DATA.DATASET", "DATA.NUM_SHAPES")


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    scale: Scale
    data: str  # folder with train and val; '' where a data set needs none
    output: Path
    gpus: int  # of each run; 1 also on the CPU
    opts: tuple[str, ...]  # of both programs


@dataclass(frozen=True)
class Run:
    """A run of one of the entry points."""

    program: str
    recipe: Path
    arguments: tuple[str, ...]
    cfg: CfgNode
    folder: Path
    images: str  # of an update, where not the recipe's number

    def command(self, gpus: int) -> list[str]:
        """The command line; under torchrun for more than one GPU."""
        launcher = [sys.executable]
        if gpus > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
        return [*launcher, str(ROOT / self.program), "--cfg", str(self.recipe), *self.arguments]

    def last_checkpoint(self) -> Path | None:
        """The checkpoint after the last epoch; None until there is one.

        ValueError where the folder holds a run with other settings.
        """
        self._require_same_settings()
        for path in checkpoints_in(self.folder):
            place = place_of(path)
            if place and place[0] == self.cfg.TRAIN.EPOCHS - 1 and not is_inside(path):
                return path
        return None

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def _require_same_settings(self) -> None:
        path = self.folder / "config.yaml"
        if not path.exists():
            return
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = (*compared_keys(self.cfg), "DATA.BATCH_SIZE")
        if changed := changed_values(stored, self.cfg, keys):
            raise ValueError(
                f"{self.folder} holds a run with other settings ({changed}): give another "
                "--output, or remove that folder"
            )


def compared_keys(cfg: CfgNode) -> Iterator[str]:
    """Keys whose values make a run another one."""
    known = set(keys_below(cfg))
    yield from keys_with_effect(cfg, is_finetuning(cfg))
    yield from (key for key in _ALSO if key in known)


@dataclass(frozen=True)
class Job:
    """A row with a seed."""

    row: Row
    seed: int
    pretraining: Run | None
    finetuning: Run

    @property
    def runs(self) -> list[Run]:
        """The runs, in order."""
        return [run for run in (self.pretraining, self.finetuning) if run is not None]

    def digest(self) -> str:
        """Eight digits for all settings that differ from their defaults, and the target's file."""
        defaults: dict[str, object] = {"DATA": {}}
        changes = (
            changed_values(
                defaults, run.cfg, (key for key in compared_keys(run.cfg) if key != "SEED")
            )
            + run.images
            + digest_of_file(target_file(run.cfg))
            for run in self.runs
        )
        return digest_of(*changes)[:8]

    def is_finished(self) -> bool:
        """Whether all runs have written their last checkpoint."""
        return all(run.last_checkpoint() is not None for run in self.runs)

    def require_order(self) -> None:
        """ValueError where there is a fine-tuning of another pre-training than would be made."""
        first, folder = self.pretraining, self.finetuning.folder
        if first and first.last_checkpoint() is None and checkpoints_in(folder):
            raise ValueError(
                f"{folder} holds a fine-tuning, and {first.folder} not the pre-training that it "
                "began from: remove it, or give another --output"
            )

    def result(self) -> "Result":
        """The figures of the finished runs."""
        last = [record for record in self.finetuning.records() if "val_acc1" in record][-1]
        loss = seconds = None
        if self.pretraining is not None:
            updates = [record for record in self.pretraining.records() if "time" in record]
            loss = float(updates[-1]["loss_mean"])
            number = updates[-1]["num_updates"] * self.pretraining.cfg.TRAIN.EPOCHS
            seconds = number * statistics.median(record["time"] for record in updates)
        return Result(
            self.row.name, self.seed, self.digest(), float(last["val_acc1"]), loss, seconds
        )


@dataclass(frozen=True)
class Result:
    """Top-1 accuracy in percent, mean loss of the last epoch and seconds of all its updates.

    ValueError where one is no number.
    """

    row: str
    seed: int
    recipe: str
    acc1: float
    loss: float | None
    seconds: float | None

    def __post_init__(self) -> None:
        figures = self.acc1, self.loss or 0.0, self.seconds or 0.0
        if not all(map(math.isfinite, figures)):
            raise ValueError(f"its accuracy, loss and seconds are {figures}, expected numbers")

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", pre-training loss {self.loss:.4f}"
        return f"{self.acc1:.2f} % top-1{loss}"


def make_job(row: Row, seed: int, settings: Settings) -> Job:
    """The runs of a row; ValueError where its batch cannot be divided over the GPUs."""
    pretraining = None
    arguments: tuple[str, ...] = ()
    if row.recipe is not None:
        tag = f"{row.recipe.stem}__seed{seed}"
        pretraining = _make_run("main_simmim.py", row.recipe, tag, seed, settings, "train")
        last = epoch_path(pretraining.folder, pretraining.cfg.TRAIN.EPOCHS - 1)
        if pretraining.cfg.TRAIN.SHARDING == "full":
            last = last.with_suffix(SHARDED_SUFFIX)
        arguments = ("--pretrained", str(last))
    tag = f"{row.name}__seed{seed}"
    finetuning = _make_run(
        "main_finetune.py", row.finetuning, tag, seed, settings, "", arguments, row.opts
    )
    return Job(row, seed, pretraining, finetuning)


def _make_run(
    program: str,
    recipe: Path,
    tag: str,
    seed: int,
    settings: Settings,
    subfolder: str,
    arguments: tuple[str, ...] = (),
    opts: tuple[str, ...] = (),
) -> Run:
    base = read_recipe(recipe)
    opts = (*opts, "SEED", str(seed), *settings.opts)
    micro_batches, rest = divmod(settings.scale.processes, settings.gpus)
    if rest or not micro_batches:
        raise ValueError(
            f"--gpus-per-run is {settings.gpus}, expected a divisor of "
            f"{settings.scale.processes}, so that an update has the images of the recipe"
        )
    if micro_batches > 1:
        opts = ("TRAIN.ACCUMULATION_STEPS", str(micro_batches), *opts)
    cfg = with_options(base, opts)
    if settings.data:
        arguments += ("--data-path", os.path.join(settings.data, subfolder).rstrip("/"))
    arguments += ("--output", str(settings.output), "--tag", tag, "--opts", *opts)
    images = settings.gpus * cfg.DATA.BATCH_SIZE * max(cfg.TRAIN.ACCUMULATION_STEPS, 1)
    planned = settings.scale.processes * base.DATA.BATCH_SIZE
    note = "" if images == planned else f"; {images} images in an update"
    return Run(program, recipe, arguments, cfg, settings.output / cfg.MODEL.NAME / tag, note)
