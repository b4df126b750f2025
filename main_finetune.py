"""Fine-tune a pre-trained encoder as a classifier, or evaluate one.

torchrun --nproc_per_node N main_finetune.py --cfg FILE --data-path DIR --pretrained CKPT
torchrun --nproc_per_node N main_finetune.py --cfg FILE --data-path DIR --eval --resume CKPT
python main_finetune.py --cfg FILE --throughput
"""

from utils.config.arguments import read_early, read_program
from utils.processes import signals

if __name__ == "__main__":  # before torch is imported, which takes seconds
    signals.listen()  # signals may arrive and launchers may end during the imports
    read_early(lambda: read_program("main_finetune.py", __doc__))

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import (
    build_batch_augmentation,
    build_eval_dataset,
    build_eval_loader,
    build_train_dataset,
    build_train_loader,
)
from data.datasets import EvalDataset, LabelledDataset
from data.drawing import draw_augmentation
from data.first_look import describe
from data.unreadable import UnreadableCount
from logger import RunLog, progress_bar
from models import build_classifier, build_criterion, load_classifier, load_pretrained
from utils.checkpoints.differences import NORMALIZATION, changed_values
from utils.checkpoints.names import starts_in
from utils.checkpoints.resume import changed, resume
from utils.checkpoints.state import Data
from utils.device import choose_precision, dtype_name
from utils.processes.exit_status import run_program
from utils.processes.group import rank, world_size
from utils.processes.heartbeat import stepping
from utils.training.agreement import require_same_parts, require_same_state
from utils.training.engine import train_one_epoch
from utils.training.epochs import Training
from utils.training.evaluation import Evaluation, evaluate, measure_throughput
from utils.training.losses import finetune_loss
from utils.training.run import Run, build_state, is_due, open_log, place_model, start_run

THROUGHPUT_SECONDS = 10.0
UNREADABLE = (
    "%d picture(s) could not be read and count as wrong (python -m tools.scan says why): %s"
)

MOVED = (
    "%d class(es) of the validation pictures have another index than the classifier's class of the "
    "same name: labels follow the names"
)


def main() -> None:
    """Fine-tune, evaluate a checkpoint, or measure throughput, by the command line."""
    run = start_run(read_program("main_finetune.py", __doc__))
    if not (run.cfg.THROUGHPUT_MODE or run.cfg.EVAL_MODE):
        finetune(run)
        return
    signals.ignore()  # nothing has to be saved
    if run.cfg.THROUGHPUT_MODE:
        print_throughput(run)
    else:
        evaluate_checkpoint(run)


def finetune(run: Run) -> None:
    """Build data, model, initial weights and optimizer; resume; train all epochs."""
    cfg = run.cfg
    dataset = build_train_dataset(cfg)
    val_dataset = build_eval_dataset(cfg, dataset.classes)
    val_loader = build_eval_loader(cfg, val_dataset, run.device)
    model = build_classifier(cfg, len(dataset.classes))
    begins = not (cfg.MODEL.RESUME or starts_in(run.folder))
    notes = start_weights(run, model, begins)
    pictures = {"training": dataset, "validation": val_dataset}
    require_same_parts(model, pictures, dataset.classes)
    model = place_model(run, model)
    loader = build_train_loader(cfg, dataset, run.device)
    updates_per_epoch = len(loader) // run.accumulation_steps
    state = build_state(run, model, updates_per_epoch, validates=True)
    data = Data(len(dataset), dataset.pictures.digest)
    start = resume(run.output, state, cfg, updates_per_epoch, run.device, dataset.classes, data)
    if not (begins or cfg.MODEL.RESUME or start.seen):
        raise changed(run.output)
    require_same_state(state)
    start.notes, start.pretrained = notes + start.notes, cfg.PRETRAINED
    augment = build_batch_augmentation(cfg, len(dataset.classes), run.device)
    criterion = build_criterion(cfg, soft_targets=augment.mixup is not None)
    log = open_log(run, state, start)  # no file is written before this
    describe_data(log, dataset, val_dataset)
    if rank() == 0 and state.position.epoch == 0:
        log.picture("augmentation", draw_augmentation(dataset, augment, run.device))
    unreadable = UnreadableCount(
        dataset.pictures, cfg.DATA.MAX_BROKEN, run.folder, log.warning, run.device
    )
    compute_loss = finetune_loss(criterion, dataset.normalize, augment)
    training = Training(run, log, state, loader, compute_loss, unreadable, dataset.classes)
    for epoch in range(state.position.epoch, cfg.TRAIN.EPOCHS):
        with training.epoch():
            train_one_epoch(training.loop)
        due = is_due(epoch, cfg.EVAL_FREQ, cfg.TRAIN.EPOCHS)
        is_best = due and validate(training, epoch, val_loader, len(dataset.classes))
        training.complete_epoch(is_due(epoch, cfg.SAVE_FREQ, cfg.TRAIN.EPOCHS), is_best)
    training.close()


def describe_data(log: RunLog, dataset: LabelledDataset, val_dataset: EvalDataset) -> None:
    """Log both data sets, and how many classes have other indices in the validation data."""
    log.info("%d images of %d classes to train on", len(dataset), len(dataset.classes))
    describe(dataset, log.info, log.warning)
    log.info("%d images to validate on", len(val_dataset))
    describe(val_dataset, log.info, log.warning)
    if val_dataset.num_moved:
        log.info(MOVED, val_dataset.num_moved)


def start_weights(run: Run, model: nn.Module, begins: bool) -> list[str]:
    """Copy the file of --pretrained, if any, into a model; return notes for the log.

    A resumed run does not read the file, which may be gone. ValueError where the run in the folder
    began from another file, since its results would be mistaken for this one's.
    """
    path, first = run.cfg.PRETRAINED, run.output.remembered().get("pretrained")
    if not path:
        return []
    if begins:
        report = load_pretrained(model, path)
        changed = changed_values(report.config, run.cfg, NORMALIZATION)
        note = f"{path} was trained with another normalization of pictures: {changed}"
        return [f"{path}: {report}", note if changed else ""]
    if first and first != os.path.abspath(path):
        raise ValueError(
            f"the run in {run.folder} began from {first}, not from --pretrained {path}: give "
            "another --tag (or omit --pretrained to continue that run)"
        )
    return [f"{path} is not read: the run goes on from a checkpoint of its own"]


def validate(
    training: Training, epoch: int, loader: DataLoader[list[Tensor]], num_classes: int
) -> bool:
    """Evaluate the (averaged) weights; return whether they are the best so far.

    ValueError where too many pictures cannot be read; the epoch is then saved without a result.
    """
    log, state = training.log, training.state
    model = state.model if state.average is None else state.average.module
    evaluation = evaluate_on(training.run, model, loader, num_classes, training.between_batches)
    dataset: Any = loader.dataset
    pictures, limit = dataset.pictures, training.run.cfg.DATA.MAX_BROKEN
    try:
        unread = pictures.require_readable(limit, training.run.device)
    except ValueError as error:
        training.close_before_validation()
        raise ValueError(
            f"{error}; the epoch is trained and saved, and the same command validates it again"
        ) from None
    assert state.best is not None  # fine-tuning has set it
    is_best = state.best.update(evaluation.acc1, epoch)
    if unread:
        log.warning(UNREADABLE, len(unread), pictures.named(unread))
    log.validated(str(evaluation), evaluation.loss, evaluation.acc1, evaluation.acc5)
    log.info("best so far: %.3f %% after epoch %d", state.best.acc1, state.best.epoch)
    return is_best


def evaluate_on(
    run: Run,
    model: nn.Module,
    loader: DataLoader[list[Tensor]],
    num_classes: int,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a classifier in TEST.PRECISION, with a progress bar on terminals."""
    dataset: Any = loader.dataset
    return evaluate(
        model,
        loader,
        dataset.normalize,
        num_classes,
        device=run.device,
        amp_dtype=choose_precision(run.cfg.TEST.PRECISION, run.device),
        progress=lambda batches: progress_bar(stepping(batches), "evaluation", rank(), len(loader)),
        between=between,
    )


def evaluate_checkpoint(run: Run) -> None:
    """Evaluate the file of --resume; print accuracies, write a report with those per class."""
    cfg = run.cfg
    path = Path(cfg.MODEL.RESUME)
    if not cfg.MODEL.RESUME:
        raise ValueError("--eval needs the checkpoint to evaluate: --resume CKPT")
    model, names = load_classifier(path, cfg, print if rank() == 0 else lambda line: None)
    head: Any = model.get_submodule("head")
    classes = names or [str(index) for index in range(head.out_features)]
    dataset = build_eval_dataset(cfg, classes, named=bool(names))
    require_same_parts(model, {"validation": dataset}, classes)
    if rank() == 0:
        describe(dataset, print, print)
    loader = build_eval_loader(cfg, dataset, run.device)
    evaluation = evaluate_on(run, model.to(run.device), loader, len(classes))
    unread = dataset.pictures.require_readable(cfg.DATA.MAX_BROKEN, run.device)
    if rank() == 0:
        print(evaluation, flush=True)
        if unread:
            print(UNREADABLE % (len(unread), dataset.pictures.named(unread)))
        if dataset.num_moved:
            print(MOVED % dataset.num_moved)
        report = {"checkpoint": str(path), "data": cfg.DATA.DATA_PATH or cfg.DATA.DATASET}
        precision = choose_precision(cfg.TEST.PRECISION, run.device)
        report |= {"precision": dtype_name(precision)} | evaluation.to_plain(dataset.classes)
        print(f"wrote {write_report(path, run, report)}")


def write_report(checkpoint: Path, run: Run, report: dict[str, object]) -> str:
    """Write eval__CHECKPOINT__TAG.json beside a checkpoint, else into the run's folder.

    Return its path, with a remark. ValueError where neither folder can be written.
    """
    name = f"{checkpoint.stem}__{run.cfg.TAG.replace('/', '_')}"
    folder = checkpoint.absolute().parent
    try:
        return _write_beside_others(folder / f"eval__{name}.json", report)
    except OSError as error:
        reason = f"{folder} cannot be written: {error.strerror}"
    path = run.folder / f"eval__{folder.name}__{name}.json"  # unique: others may share the name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"{_write_beside_others(path, report)} ({reason})"
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror} (--output DIR)") from None


def _write_beside_others(path: Path, report: dict[str, object]) -> str:
    """Write a report; add a number to the name of an earlier, different one. Return the path."""
    text, moved = json.dumps(report, indent=1) + "\n", ""
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        names = (path.with_name(f"{path.stem}__{number}.json") for number in itertools.count(1))
        earlier = next(name for name in names if not name.exists())
        path.rename(earlier)
        moved = f" (the one before is {earlier.name})"
    path.write_text(text, encoding="utf-8")
    return f"{path}{moved}"


def print_throughput(run: Run) -> None:
    """Print the classifier's images per second on synthetic images, forward passes only."""
    keys = run.cfg.DATA
    model: Any = build_classifier(run.cfg, run.cfg.MODEL.NUM_CLASSES).to(run.device)
    shape = (keys.BATCH_SIZE, model.in_chans, *to_2tuple(keys.IMG_SIZE))
    images_per_second = measure_throughput(
        model,
        torch.randn(shape, device=run.device),
        run.amp_dtype,
        seconds=THROUGHPUT_SECONDS,
    )
    print(
        f"batch_size {keys.BATCH_SIZE} throughput {images_per_second:.1f} images/s "
        f"(forward, {dtype_name(run.amp_dtype)}, each of {world_size()} process(es))"
    )


if __name__ == "__main__":
    run_program(main, resumes=True)
