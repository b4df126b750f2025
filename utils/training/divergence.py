"""What a diverged run leaves: all that one command needs to compute the bad update again."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from utils.checkpoints.contents import save_checkpoint
from utils.checkpoints.state import Position, TrainState, training_content
from utils.device import dtype_name
from utils.processes.group import rank, world_size
from utils.processes.sharding import is_sharded
from utils.training.run import Run


def split_among_processes(
    samples: list[int], processes: int, micro_batches: int
) -> list[list[list[int]]]:
    """An update's samples by process and micro-batch, as the loaders hand them out."""
    size = len(samples) // (processes * micro_batches)
    return [
        [samples[rank::processes][size * part : size * (part + 1)] for part in range(micro_batches)]
        for rank in range(processes)
    ]


def write_bundle(
    run: Run,
    state: TrainState,
    place: Position | None,
    order: Callable[[int], Tensor],
    name_of: Callable[[int], str],
    classes: Sequence[str],
) -> Path | None:
    """Write `diverged_update_N.pth`: the state before update N, its samples and their files.

    `place` is where update N began, `order` the order of an epoch's samples, `name_of` the name of
    a sample's picture. The weights are those that it began with, since skipped updates change
    nothing; what was random in it follows from the seed and the numbers of update, process and
    micro-batch. Of a sharded model, whose weights no process has, nothing is written, nor of an
    update that another process made before this one was started (`place` is None). Returns the
    file.
    """
    if place is None or is_sharded(state.model):
        return None
    samples = order(place.epoch)[place.images : place.images + run.images_per_update].tolist()
    content = training_content(state, run.cfg, classes)
    content["diverged"] = {
        "update": place.update,
        "epoch": place.epoch,
        "samples": split_among_processes(samples, world_size(), run.accumulation_steps),
        "files": {index: name_of(index) for index in samples},
        "precision": dtype_name(run.amp_dtype),
        "random": {"seed": run.cfg.SEED, "key": "(update stream, seed, update, micro-batch, rank)"},
    }
    path = run.folder / f"diverged_update_{place.update}.pth"
    if rank() == 0:
        save_checkpoint(path, content)
    return path
