"""Build data sets and loaders from the configuration, which no other file in data/ reads."""

import os
from collections.abc import Callable, Sequence
from typing import cast

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from yacs.config import CfgNode

from data.datasets import EvalDataset, LabelledDataset, PretrainDataset, collate
from data.labelled import (
    LabelledPictures,
    class_folders,
    csv_list,
    first_of_each_class,
    listed_pictures,
)
from data.listing import require_path
from data.masking import MASKS
from data.pictures import Decoder
from data.samplers import EpochSampler, Key, ShareSampler
from data.shards import Shards
from data.sources import (
    Cifar10,
    ImageFolder,
    LabelledSet,
    PictureSet,
    Selection,
    Shapes,
    require_several_classes,
)
from data.transforms import (
    BatchAugmentation,
    Normalizer,
    eval_transform,
    pretrain_transform,
    train_transform,
)
from data.unreadable import EvalPictures, ReadablePictures
from utils.messages import choose, require_same_classes, shown
from utils.processes.group import rank, world_size
from utils.processes.signals import follow_parent


def _drawn(cfg: CfgNode, number: int, train: bool) -> Shapes:
    """The built-in drawn shapes; ValueError where DATA.DATA_PATH is set."""
    if cfg.DATA.DATA_PATH:
        raise ValueError(
            "DATA.DATASET shapes draws its pictures and reads none of DATA.DATA_PATH, which is "
            f"{shown(cfg.DATA.DATA_PATH)}: --opts DATA.DATASET imagenet reads a folder"
        )
    return Shapes(number, cfg.DATA.IMG_SIZE, train, _channels(cfg))


# Name -> (configuration, train) -> pictures; pre-training ignores their labels
DATASETS: dict[str, Callable[[CfgNode, bool], PictureSet]] = {
    "imagenet": lambda cfg, train: ImageFolder(cfg.DATA.DATA_PATH, _decoder(cfg)),
    "shards": lambda cfg, train: Shards(cfg.DATA.DATA_PATH, _decoder(cfg)),
    "cifar10": lambda cfg, train: Cifar10(cfg.DATA.DATA_PATH, train, _channels(cfg)),
    "shapes": lambda cfg, train: _drawn(cfg, cfg.DATA.NUM_SHAPES, train),
}


def build_pretrain_dataset(cfg: CfgNode, *, patch_size: int, train: bool = True) -> PretrainDataset:
    """Build the pre-training set, with augmentation and masks; `patch_size` is the encoder's."""
    keys, size = cfg.DATA, cfg.DATA.IMG_SIZE
    pictures = choose(DATASETS, keys.DATASET, "DATA.DATASET")(cfg, train)
    readable = ReadablePictures(pictures, cfg.SEED, _channels(cfg))
    mask = build_mask(cfg, patch_size)
    return PretrainDataset(readable, pretrain_transform(size), mask, _normalizer(cfg))


def build_mask(cfg: CfgNode, patch_size: int) -> Callable[[], Tensor]:
    """Return a function that draws an image's mask: bool (H/patch, W/patch), True = hidden.

    The mask also gets the keys of the section DATA.<NAME in capitals>, if there is one.
    """
    keys = cfg.DATA
    mask = choose(MASKS, keys.MASK, "DATA.MASK")
    section = keys.get(keys.MASK.upper())
    own = section if isinstance(section, CfgNode) else {}
    return mask(
        keys.IMG_SIZE,
        keys.MASK_PATCH_SIZE,
        patch_size,
        keys.MASK_RATIO,
        **{key.lower(): value for key, value in own.items()},
    )


def _channels(cfg: CfgNode) -> int:
    """IN_CHANS of the encoder that MODEL.TYPE names."""
    sections = {
        name.lower(): keys.IN_CHANS
        for name, keys in cfg.MODEL.items()
        if isinstance(keys, CfgNode) and "IN_CHANS" in keys
    }
    return int(choose(sections, cfg.MODEL.TYPE, "MODEL.TYPE (a section of MODEL with IN_CHANS)"))


def _decoder(cfg: CfgNode, exact: bool = False) -> Decoder:
    """The decoder of pre-training, or the one that fine-tuning and evaluation use (`exact`)."""
    keys = cfg.DATA
    fast = keys.DECODER == "fast" and not exact
    reduction = pretrain_transform(keys.IMG_SIZE).reduction if fast else None
    return Decoder(_channels(cfg), fast, keys.EXIF_ORIENTATION, keys.MAX_PIXELS, reduction)


def _normalizer(cfg: CfgNode) -> Normalizer:
    return Normalizer(cfg.DATA.MEAN, cfg.DATA.STD, _channels(cfg))


def _imagenet(cfg: CfgNode, train: bool, classes: Sequence[str] | None) -> LabelledPictures:
    keys = cfg.DATA
    require_path(keys.DATA_PATH)
    folder = os.path.join(keys.DATA_PATH, "train" if train else "val")
    if train or not keys.VAL_LABELS:
        return class_folders(folder, _decoder(cfg, exact=True))
    assert classes is not None  # evaluation passes those of the training set or checkpoint
    return listed_pictures(folder, keys.VAL_LABELS, classes, _decoder(cfg, exact=True))


def _shards(cfg: CfgNode, train: bool, classes: Sequence[str] | None) -> Shards:
    require_path(cfg.DATA.DATA_PATH)
    folder = os.path.join(cfg.DATA.DATA_PATH, "train" if train else "val")
    shards = Shards(folder, _decoder(cfg, exact=True))
    if train:
        shards.require_all_classes()
    return shards


def _csv(cfg: CfgNode, train: bool, classes: Sequence[str] | None) -> LabelledPictures:
    path = cfg.DATA.DATA_PATH
    require_path(path)
    name = "train.csv" if train else "val.csv"
    return csv_list(os.path.join(path, name), classes, _decoder(cfg, exact=True))


def _shapes(cfg: CfgNode, train: bool, classes: Sequence[str] | None) -> Shapes:
    number = cfg.DATA.NUM_SHAPES if train else cfg.DATA.NUM_VAL_SHAPES
    return _drawn(cfg, number, train)


# Name -> (configuration, train, known classes or None) -> pictures with labels
LABELLED: dict[str, Callable[[CfgNode, bool, Sequence[str] | None], LabelledSet]] = {
    "imagenet": _imagenet,
    "csv": _csv,
    "shards": _shards,
    "cifar10": lambda cfg, train, classes: Cifar10(cfg.DATA.DATA_PATH, train, _channels(cfg)),
    "shapes": _shapes,
}


def build_train_dataset(cfg: CfgNode) -> LabelledDataset:
    """Build the labelled training set, with augmentation; its classes are the classifier's."""
    keys = cfg.DATA
    pictures = choose(LABELLED, keys.DATASET, "DATA.DATASET")(cfg, True, None)
    require_several_classes(pictures, f"{keys.DATASET} {keys.DATA_PATH}".rstrip())
    transform = train_transform(
        keys.IMG_SIZE,
        keys.INTERPOLATION,
        cfg.AUG.CROP_SCALE,
        cfg.AUG.COLOR_JITTER,
        cfg.AUG.AUTO_AUGMENT,
        keys.MEAN,
    )
    classes = pictures.classes
    if keys.IMAGES_PER_CLASS:
        chosen = first_of_each_class(pictures.labels, keys.IMAGES_PER_CLASS, classes)
        pictures = Selection(pictures, chosen)
    readable = ReadablePictures(pictures, cfg.SEED, _channels(cfg))
    return LabelledDataset(readable, transform, classes, _normalizer(cfg))


def build_eval_dataset(cfg: CfgNode, classes: Sequence[str], named: bool = True) -> EvalDataset:
    """Build the labelled validation set, without augmentation; ValueError for other `classes`.

    Labels become indices into `classes`. The data may order the same classes differently: CSV lists
    sort numbers by value, folders sort as text. Where a checkpoint stores no class names (`named`
    is False, `classes` is "0", "1", ...), only their number is compared; the data's order is used.
    """
    keys = cfg.DATA
    if keys.VAL_LABELS and keys.DATASET != "imagenet":
        raise ValueError(f"DATA.VAL_LABELS is for DATASET imagenet, not for {keys.DATASET}")
    pictures = choose(LABELLED, keys.DATASET, "DATA.DATASET")(cfg, False, classes)
    own = pictures.classes
    if not named and len(own) == len(classes):
        classes = own
    # Indices (shards without names) and repeated names do not identify classes: compare in order.
    is_named = list(own) != [str(index) for index in range(len(own))] and len(set(own)) == len(own)
    if not is_named or sorted(own) != sorted(classes):
        what = f"validation pictures of {keys.DATASET} {keys.DATA_PATH}".rstrip()
        require_same_classes(own, classes, what)
    place = {name: index for index, name in enumerate(classes)}
    order = [place[name] for name in own] if is_named else range(len(own))
    transform = eval_transform(keys.IMG_SIZE, keys.INTERPOLATION, cfg.TEST.CROP)
    readable = EvalPictures(pictures, cfg.SEED, _channels(cfg))
    return EvalDataset(readable, transform, list(classes), _normalizer(cfg), order)


def build_batch_augmentation(
    cfg: CfgNode, num_classes: int, device: torch.device
) -> BatchAugmentation:
    """Build random erasing and, where MIXUP or CUTMIX is on, mixing with soft targets."""
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
) -> DataLoader[list[Tensor]]:
    """Build the loader of either stage; call `loader.sampler.set_position` before each epoch.

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
    sampler = EpochSampler(len(dataset), world_size(), rank(), cfg.SEED)
    return _loader(cfg, dataset, sampler, device, drop_last=True)


def build_eval_loader(
    cfg: CfgNode, dataset: LabelledDataset, device: torch.device
) -> DataLoader[list[Tensor]]:
    """Build the loader of this process's share: batches of images (uint8 for RGB) and labels."""
    return _loader(cfg, dataset, ShareSampler(len(dataset)), device, drop_last=False)


def _loader(
    cfg: CfgNode,
    dataset: PretrainDataset | LabelledDataset,
    sampler: Sampler[Key],
    device: torch.device,
    drop_last: bool,
) -> DataLoader[list[Tensor]]:
    return DataLoader(
        cast(Dataset[list[Tensor]], dataset),  # a collated batch is a list for either data set
        batch_size=cfg.DATA.BATCH_SIZE,
        sampler=sampler,
        num_workers=cfg.DATA.NUM_WORKERS,
        pin_memory=cfg.DATA.PIN_MEMORY and device.type == "cuda",
        drop_last=drop_last,
        collate_fn=collate,
        persistent_workers=cfg.DATA.NUM_WORKERS > 0,
        worker_init_fn=_start_worker,
    )


def _start_worker(worker: int) -> None:
    torch.set_flush_denormal(True)  # as in the main process
    follow_parent()
