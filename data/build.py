"""From the configuration to loaders; the only file here that reads it."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset
from yacs.config import CfgNode

from data.datasets import DATASETS, Cifar10, PictureSet, Shapes, require_path
from data.labelled import (
    LabelledPictures,
    class_folders,
    csv_list,
    first_of_each_class,
    listed_pictures,
)
from data.masking import MASKS
from data.transforms import (
    BatchAugmentation,
    eval_transform,
    pretrain_transform,
    train_transform,
)
from utils.checks import choose, require_same_classes
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


class LabelledDataset(Dataset[tuple[Tensor, int]]):
    """Image and label; what the transform leaves to chance follows from (seed, epoch, index)."""

    def __init__(
        self,
        pictures: PictureSet,
        transform: Callable[[Any], Tensor],
        classes: list[str],
        seed: int,
    ) -> None:
        self.pictures, self.transform, self.seed = pictures, transform, seed
        self.classes = classes

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """uint8 image (3, H, W) and label of (epoch, index)."""
        epoch, index = key
        picture, label = self.pictures[index]
        with seeded(SAMPLE_STREAM, self.seed, epoch, index):
            return self.transform(picture), label


class EpochSampler(DistributedSampler):
    """This process's shuffled share of an epoch; its keys carry the epoch to the workers."""

    def __iter__(self) -> Iterator[Key]:
        return ((self.epoch, index) for index in super().__iter__())


class ShareSampler(Sampler[Key]):
    """This process's share of a data set: all shares together are every sample once."""

    def __init__(self, num_samples: int) -> None:
        self.indices = range(rank(), num_samples, world_size())

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        return ((0, index) for index in self.indices)


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


def _imagenet(keys: CfgNode, train: bool, classes: Sequence[str] | None) -> LabelledPictures:
    require_path(keys.DATA_PATH)
    folder = os.path.join(keys.DATA_PATH, "train" if train else "val")
    if train or not keys.VAL_LABELS:
        return class_folders(folder)
    assert classes is not None  # evaluation knows them from the training set or the checkpoint
    return listed_pictures(folder, keys.VAL_LABELS, classes)


def _csv(keys: CfgNode, train: bool, classes: Sequence[str] | None) -> LabelledPictures:
    require_path(keys.DATA_PATH)
    return csv_list(os.path.join(keys.DATA_PATH, "train.csv" if train else "val.csv"), classes)


# Name -> (section DATA, train, classes if they are known) -> pictures with labels and classes
LABELLED: dict[str, Callable[[CfgNode, bool, Sequence[str] | None], Any]] = {
    "imagenet": _imagenet,
    "csv": _csv,
    "cifar10": lambda keys, train, classes: Cifar10(keys.DATA_PATH, train),
    "shapes": lambda keys, train, classes: Shapes(
        keys.NUM_SHAPES if train else keys.NUM_VAL_SHAPES, keys.IMG_SIZE, train
    ),
}


def build_train_dataset(cfg: CfgNode) -> LabelledDataset:
    """Labelled training pictures with augmentation; their classes are the classifier's."""
    keys = cfg.DATA
    pictures = choose(LABELLED, keys.DATASET, "DATA.DATASET")(keys, True, None)
    transform = train_transform(
        keys.IMG_SIZE,
        keys.INTERPOLATION,
        cfg.AUG.CROP_SCALE,
        cfg.AUG.COLOR_JITTER,
        cfg.AUG.AUTO_AUGMENT,
    )
    classes = pictures.classes
    if keys.IMAGES_PER_CLASS:
        chosen = first_of_each_class(pictures.labels, keys.IMAGES_PER_CLASS, classes)
        pictures = Subset(pictures, chosen)
    return LabelledDataset(pictures, transform, classes, cfg.SEED)


def build_eval_dataset(cfg: CfgNode, classes: Sequence[str]) -> LabelledDataset:
    """Labelled validation pictures without augmentation; ValueError for other `classes`.

    Classes that a checkpoint does not name are "0", "1", ...: then only their number is checked.
    """
    keys = cfg.DATA
    if keys.VAL_LABELS and keys.DATASET != "imagenet":
        raise ValueError(f"DATA.VAL_LABELS is for DATASET imagenet, not for {keys.DATASET}")
    pictures = choose(LABELLED, keys.DATASET, "DATA.DATASET")(keys, False, classes)
    unnamed = list(classes) == [str(index) for index in range(len(classes))]
    if not (unnamed and len(pictures.classes) == len(classes)):
        what = f"validation pictures of {keys.DATASET} {keys.DATA_PATH}".rstrip()
        require_same_classes(pictures.classes, classes, what)
    transform = eval_transform(keys.IMG_SIZE, keys.INTERPOLATION, cfg.TEST.CROP)
    return LabelledDataset(pictures, transform, pictures.classes, cfg.SEED)


def build_batch_augmentation(
    cfg: CfgNode, num_classes: int, device: torch.device
) -> BatchAugmentation:
    """Random erasing and, where MIXUP or CUTMIX is on, mixed images with soft targets."""
    keys = cfg.AUG
    erase = RandomErasing(keys.REPROB, mode=keys.REMODE, max_count=keys.RECOUNT, device=device.type)
    if not (keys.MIXUP > 0 or keys.CUTMIX > 0 or keys.CUTMIX_MINMAX is not None):
        return BatchAugmentation(erase, None)
    if cfg.DATA.BATCH_SIZE % 2:
        raise ValueError(
            f"DATA.BATCH_SIZE is {cfg.DATA.BATCH_SIZE}; Mixup and CutMix pair images and need an "
            "even one (--opts AUG.MIXUP 0.0 AUG.CUTMIX 0.0 turns both off)"
        )
    mixup = Mixup(
        mixup_alpha=keys.MIXUP,
        cutmix_alpha=keys.CUTMIX,
        cutmix_minmax=keys.CUTMIX_MINMAX,
        prob=keys.MIXUP_PROB,
        switch_prob=keys.MIXUP_SWITCH_PROB,
        mode=keys.MIXUP_MODE,
        label_smoothing=cfg.MODEL.LABEL_SMOOTHING,
        num_classes=num_classes,
    )
    return BatchAugmentation(erase, mixup)


def build_train_loader(
    cfg: CfgNode, dataset: PretrainDataset | LabelledDataset, device: torch.device
) -> DataLoader[Any]:
    """Batches of either stage; call `loader.sampler.set_epoch` before each epoch.

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
    return _loader(cfg, dataset, sampler, device, drop_last=True)


def build_eval_loader(
    cfg: CfgNode, dataset: LabelledDataset, device: torch.device
) -> DataLoader[Any]:
    """Batches of uint8 images and labels: this process's share of the data set."""
    return _loader(cfg, dataset, ShareSampler(len(dataset)), device, drop_last=False)


def _loader(
    cfg: CfgNode,
    dataset: Dataset[Any],
    sampler: Sampler[Key],
    device: torch.device,
    drop_last: bool,
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=cfg.DATA.BATCH_SIZE,
        sampler=sampler,
        num_workers=cfg.DATA.NUM_WORKERS,
        pin_memory=cfg.DATA.PIN_MEMORY and device.type == "cuda",
        drop_last=drop_last,
        persistent_workers=cfg.DATA.NUM_WORKERS > 0,
        worker_init_fn=_ignore_interrupts,
    )


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
