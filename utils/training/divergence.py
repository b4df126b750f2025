"""Write the file of a diverged run from which one command recomputes the bad update."""

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
    """An update's samples by process and micro-batch, as the loaders distribute them."""
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

    `place` is the position where update N began, `order` returns an epoch's order of samples,
    `name_of` the name of a sample's picture. The weights are those before update N, since skipped
    updates change nothing; its random numbers follow from the seed and the numbers of update,
    process and micro-batch. Return the file, or None and write nothing where the model is sharded
    (no process has its whole weights) or `place` is unknown (an update before this run's start).
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
