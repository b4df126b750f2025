"""Workloads of this project: updates of either stage, and loading pictures."""

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from data import (
    build_batch_augmentation,
    build_mask,
    build_pretrain_dataset,
    build_train_dataset,
    build_train_loader,
)
from data.listing import find_pictures
from data.transforms import Normalizer
from logger import Record
from models import build_classifier, build_criterion, build_pretrain_model
from models.simmim import Encoder
from tools.measuring.kernels import breakdown, synchronize
from tools.measuring.measure import Figures, Work
from utils.checkpoints.state import Position
from utils.config import is_finetuning
from utils.device import choose_device, choose_precision, dtype_name
from utils.files import RunFolder
from utils.processes.group import distribute, start_process_group
from utils.training.engine import Loop, train_one_epoch
from utils.training.losses import ComputeLoss, finetune_loss, pretrain_loss
from utils.training.metrics import TrainingMetrics, peak_memory_mb
from utils.training.run import Run, build_state, place_model, set_up_device

_MOST_DRAWN = 50 * 10**6  # pixels


def build_stage(cfg: CfgNode, device: torch.device) -> tuple[nn.Module, ComputeLoss]:
    """Build the model of a recipe's stage, and its loss of a batch from the loader."""
    if not is_finetuning(cfg):
        model = build_pretrain_model(cfg)
        normalize = Normalizer(cfg.DATA.MEAN, cfg.DATA.STD, model.encoder.in_chans)
        return model, pretrain_loss(normalize)
    classifier: Any = build_classifier(cfg, cfg.MODEL.NUM_CLASSES)
    normalize = Normalizer(cfg.DATA.MEAN, cfg.DATA.STD, classifier.in_chans)
    augment = build_batch_augmentation(cfg, cfg.MODEL.NUM_CLASSES, device)
    criterion = build_criterion(cfg, soft_targets=augment.mixup is not None)
    return classifier, finetune_loss(criterion, normalize, augment)


def synthetic_batch(cfg: CfgNode, encoder: Encoder) -> list[Tensor]:
    """Pictures of noise, uint8 (B, C, H, W), with masks or labels."""
    keys, batch = cfg.DATA, cfg.DATA.BATCH_SIZE
    shape = (batch, encoder.in_chans, *to_2tuple(keys.IMG_SIZE))
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    if is_finetuning(cfg):
        return [image, torch.randint(0, cfg.MODEL.NUM_CLASSES, (batch,))]
    mask = build_mask(cfg, encoder.patch_size)
    return [image, torch.stack([mask() for _ in range(batch)])]


class Batches:
    """`number` batches: of a loader, which is repeated, or the same batch each time."""

    def __init__(
        self, source: DataLoader[list[Tensor]] | list[Tensor], batch_size: int, number: int
    ):
        self.source, self.batch_size, self.number = source, batch_size, number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[list[Tensor]]:
        if isinstance(self.source, DataLoader):
            again_and_again = itertools.chain.from_iterable(itertools.repeat(self.source))
            return itertools.islice(again_and_again, self.number)
        return itertools.repeat(self.source, self.number)


def training_work(
    cfg: CfgNode, num_updates: int, real_data: bool = False, profiles: bool = False
) -> Work:
    """Updates by the training loop itself, on the configuration's data or on noise.

    Under torchrun, all processes train together. `profiles` adds the time by kind of operation
    to the figures.
    """
    device = set_up_device(cfg)
    start_process_group(device)
    run = Run(cfg, device, choose_precision(cfg.TRAIN.PRECISION, device), RunFolder(Path()))
    model, compute_loss = build_stage(cfg, device)
    encoder: Any = getattr(model, "encoder", model)
    source: Any = (
        training_loader(cfg, encoder.patch_size, device)
        if real_data
        else [part.to(device) for part in synthetic_batch(cfg, encoder)]
    )
    batches: Any = Batches(source, cfg.DATA.BATCH_SIZE, num_updates * run.accumulation_steps)
    state = build_state(run, place_model(run, model), num_updates)
    records: list[Record] = []
    images, max_skipped = run.images_per_update, cfg.TRAIN.MAX_SKIPPED
    wrapped, scales = distribute(model, device), state.scaler.is_enabled()

    def updates() -> None:
        """Run all updates; wait until the device has finished."""
        state.position = Position(images, update=state.position.update)
        metrics = TrainingMetrics(device, images, max_skipped, scales)
        train_one_epoch(
            Loop(run, state, wrapped, batches, compute_loss, metrics, num_updates, records.append)
        )
        synchronize(device)

    def figures() -> Figures:
        """Peak memory, share of time that waits for data and, if `profiles`, time by kind."""
        peak = peak_memory_mb(device)  # before the profiler, which needs memory of its own
        waits = [record["data_wait"] for record in records if record["index"] == num_updates - 1]
        shares, slower = breakdown(updates, device) if profiles else ({}, 1.0)
        wait = float(np.median(waits))
        return {"memory_mb": peak, "data_wait": wait, "breakdown": shares, "profiled": slower}

    return Work(updates, figures)


def training_loader(
    cfg: CfgNode, patch_size: int, device: torch.device
) -> DataLoader[list[Tensor]]:
    """Build the loader of a recipe's stage."""
    if is_finetuning(cfg):
        return build_train_loader(cfg, build_train_dataset(cfg), device)
    dataset = build_pretrain_dataset(cfg, patch_size=patch_size)
    return build_train_loader(cfg, dataset, device)


def loading_work(cfg: CfgNode, patch_size: int) -> Work:
    """One pass over the pictures of a configuration through the loader."""
    return passes_over(training_loader(cfg, patch_size, torch.device("cpu")))


def passes_over(loader: Iterable[object]) -> Work:
    """One pass over all batches of a loader."""

    def load() -> None:
        for _ in loader:
            pass

    return Work(load)


def collect_pictures(source: str, folder: Path, number: int, size: tuple[int, int]) -> int:
    """Copy `number` pictures spread over `source` to `folder`, or draw them; return the number.

    Drawn pictures are JPEGs of `size` (width, height): smooth with some noise, about as many bytes
    as photographs. Of large ones a few are drawn, and copied.
    """
    if source:
        names = list(find_pictures(source).names)
        chosen = names[:: max(len(names) // number, 1)][:number]
        for index, name in enumerate(chosen):
            path = Path(source, name.decode())
            shutil.copyfile(path, folder / f"{index:05}{path.suffix}")
        return len(chosen)
    random = np.random.default_rng(0)
    few = max(1, _MOST_DRAWN // (size[0] * size[1]))
    for index in range(number):
        path = folder / f"{index:05}.jpg"
        if index >= few:
            shutil.copyfile(folder / f"{index % few:05}.jpg", path)
            continue
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=90)
    return number


def settings(cfg: CfgNode) -> dict[str, object]:
    """The settings that determine the speed of a configuration."""
    device = choose_device(cfg.DEVICE)
    return {
        "recipe": cfg.TAG,
        "image_size": cfg.DATA.IMG_SIZE,
        "batch_size": cfg.DATA.BATCH_SIZE,
        "accumulation_steps": max(cfg.TRAIN.ACCUMULATION_STEPS, 1),
        "precision": dtype_name(choose_precision(cfg.TRAIN.PRECISION, device)),
        "compile": cfg.TRAIN.COMPILE,
        "recompute": cfg.TRAIN.USE_CHECKPOINT,
    }
