"""What a diverged run leaves: all that one command needs to compute the bad update again."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from utils.checkpoints.state import save_checkpoint, training_state
from utils.device import dtype_name
from utils.processes.group import rank, world_size
from utils.processes.sharding import is_sharded
from utils.training.run import Run


class Places:
    """Where in the data the latest updates began: update -> (epoch, images before it)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.known: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def note(self, update: int, epoch: int, images: int) -> None:
        """An update begins."""
        self.known[update] = epoch, images
        while len(self.known) > self.number:
            self.known.popitem(last=False)

    def find(self, update: int | None) -> tuple[int, int, int] | None:
        """That update (None: the latest), or the earliest known after it, with its place."""
        wanted = max(self.known, default=0) if update is None else update
        found = min((key for key in self.known if key >= wanted), default=None)
        return None if found is None else (found, *self.known[found])


def shares(samples: list[int], processes: int, micro_batches: int) -> list[list[list[int]]]:
    """An update's samples, in the order of the epoch, by process and micro-batch."""
    size = len(samples) // (processes * micro_batches)
    return [
        [samples[rank::processes][size * part : size * (part + 1)] for part in range(micro_batches)]
        for rank in range(processes)
    ]


def write_bundle(
    run: Run, parts: dict[str, Any], loader: DataLoader[Any], places: Places, update: int | None
) -> Path | None:
    """Write `diverged_update_N.pth`: the state before update N, its samples and their files.

    The weights are those that it began with, since skipped updates change nothing; what was random
    in it follows from the seed and the numbers of update, process and micro-batch. Of a sharded
    model, whose weights no process has, nothing is written, nor of an update that another process
    made before this one was started. Returns where it lies.
    """
    place = places.find(update)
    if place is None or is_sharded(parts["model"]):
        return None
    update, epoch, images = place
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler
    samples = sampler.order_of(epoch)[images : images + run.images_per_update].tolist()
    names = {index: dataset.pictures.name(index) for index in samples}
    state = training_state(parts, run.cfg, getattr(dataset, "classes", ()))
    state["diverged"] = {
        "update": update,
        "epoch": epoch,
        "samples": shares(samples, world_size(), run.accumulation_steps),
        "files": names,
        "precision": dtype_name(run.amp_dtype),
        "random": {"seed": run.cfg.SEED, "key": "(update stream, seed, update, micro-batch, rank)"},
    }
    path = run.folder / f"diverged_update_{update}.pth"
    if rank() == 0:
        save_checkpoint(path, state)
    return path
