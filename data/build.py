"""From the configuration to loaders; the only file here that reads it."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from yacs.config import CfgNode

from data.datasets import DATASETS, PictureSet
from data.masking import MASKS
from data.transforms import pretrain_transform
from utils.checks import choose
from utils.distributed import SAMPLE_STREAM, rank, seeded, world_size

Key = tuple[int, int]  # (epoch, index of the sample)


class PretrainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image and mask of a sample, both a function of (seed, epoch, index) alone."""

    def __init__(
        self,
        pictures: PictureSet,
        transform: Callable[[Any], Tensor],
        mask: Callable[[], Tensor],
        seed: int,
    ) -> None:
        self.pictures, self.transform, self.mask, self.seed = pictures, transform, mask, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """uint8 image (3, H, W) and bool mask (H/patch, W/patch) of (epoch, index)."""
        epoch, index = key
        picture, _ = self.pictures[index]
        with seeded(SAMPLE_STREAM, self.seed, epoch, index):
            return self.transform(picture), self.mask()


class EpochSampler(DistributedSampler):
    """This process's shuffled share of an epoch; its keys carry the epoch to the workers."""

    def __iter__(self) -> Iterator[Key]:
        return ((self.epoch, index) for index in super().__iter__())


def build_pretrain_dataset(cfg: CfgNode, *, patch_size: int, train: bool = True) -> PretrainDataset:
    """Pictures with augmentation and masks; `patch_size` is the encoder's."""
    keys = cfg.DATA
    pictures = choose(DATASETS, keys.DATASET, "DATA.DATASET")(
        keys.DATA_PATH, keys.IMG_SIZE, keys.NUM_SHAPES, train
    )
    mask = choose(MASKS, keys.MASK, "DATA.MASK")(
        keys.IMG_SIZE, keys.MASK_PATCH_SIZE, patch_size, keys.MASK_RATIO
    )
    return PretrainDataset(pictures, pretrain_transform(keys.IMG_SIZE), mask, cfg.SEED)


def build_pretrain_loader(
    cfg: CfgNode, dataset: PretrainDataset, device: torch.device
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of uint8 images and masks; call `loader.sampler.set_epoch` before each epoch.

    ValueError where the data set holds fewer images than one update needs.
    """
    accumulation = max(cfg.TRAIN.ACCUMULATION_STEPS, 1)
    needed = cfg.DATA.BATCH_SIZE * accumulation * world_size()
    if len(dataset) < needed:
        raise ValueError(
            f"{cfg.DATA.DATASET} {cfg.DATA.DATA_PATH} holds {len(dataset)} images, fewer than one "
            f"update needs: {needed} ({cfg.DATA.BATCH_SIZE} x {accumulation} micro-batches x "
            f"{world_size()} processes); give a smaller --batch-size"
        )
    sampler: EpochSampler = EpochSampler(
        dataset, world_size(), rank(), shuffle=True, seed=cfg.SEED, drop_last=True
    )
    return DataLoader(
        dataset,
        batch_size=cfg.DATA.BATCH_SIZE,
        sampler=sampler,
        num_workers=cfg.DATA.NUM_WORKERS,
        pin_memory=cfg.DATA.PIN_MEMORY and device.type == "cuda",
        drop_last=True,
        persistent_workers=cfg.DATA.NUM_WORKERS > 0,
        worker_init_fn=_ignore_interrupts,
    )


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
