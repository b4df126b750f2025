"""Samples of both stages, and which of them a process gets, in which order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data.careful import CarefulPictures
from data.transforms import Normalizer
from utils.processes.group import SAMPLE_STREAM, rank, seeded, world_size

Key = tuple[int, int]  # (epoch, index of the sample)


class PretrainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image and mask of a sample, both a function of (seed, epoch, index) alone.

    `normalize` makes of a batch of images what the network takes.
    """

    def __init__(
        self,
        pictures: CarefulPictures,
        transform: Callable[[Any], Tensor],
        mask: Callable[[], Tensor],
        normalize: Normalizer,
    ) -> None:
        self.pictures, self.transform, self.mask = pictures, transform, mask
        self.normalize = normalize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) and bool mask (H/patch, W/patch) of (epoch, index)."""
        picture, _ = self.pictures.read(*key)
        with seeded(SAMPLE_STREAM, self.pictures.seed, *key):
            return self.transform(picture), self.mask()


class LabelledDataset(Dataset[tuple[Tensor, int]]):
    """Image and label; what the transform leaves to chance follows from (seed, epoch, index)."""

    def __init__(
        self,
        pictures: CarefulPictures,
        transform: Callable[[Any], Tensor],
        classes: list[str],
        normalize: Normalizer,
    ) -> None:
        self.pictures, self.transform = pictures, transform
        self.classes, self.normalize = classes, normalize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Image (C, H, W) and label of (epoch, index)."""
        picture, label = self.pictures.read(*key)
        with seeded(SAMPLE_STREAM, self.pictures.seed, *key):
            return self.transform(picture), label


class EvalDataset(LabelledDataset):
    """The same without chance: a picture that cannot be read is black and has label -1 - label.

    `order` holds the index in `classes` of each of the pictures' own classes.
    """

    def __init__(
        self,
        pictures: CarefulPictures,
        transform: Callable[[Any], Tensor],
        classes: list[str],
        normalize: Normalizer,
        order: Sequence[int],
    ) -> None:
        super().__init__(pictures, transform, classes, normalize)
        self.order = order

    @property
    def num_moved(self) -> int:
        """How many classes have another index than among the pictures' own."""
        return sum(index != own for own, index in enumerate(self.order))

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Image (C, H, W) and label of (0, index)."""
        picture, own, readable = self.pictures.read_or_blank(key[1])
        label = self.order[own]
        return self.transform(picture), label if readable else -1 - label


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The order of samples in an epoch, int64 (length,): that of torch's DistributedSampler."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed + epoch))


class EpochSampler(Sampler[Key]):
    """This process's share of an epoch's order; its keys carry the epoch to the workers.

    The processes take turns, so that what all have seen is a beginning of the order: another
    number of them can go on from there. What does not divide among them is left out.
    """

    def __init__(self, length: int, processes: int, rank: int, seed: int) -> None:
        self.length, self.processes, self.rank, self.seed = length, processes, rank, seed
        self.epoch = self.done = 0

    def set_position(self, epoch: int, done: int = 0) -> None:
        """The next pass is over this epoch without its first `done` samples."""
        self.epoch, self.done = epoch, done

    def order_of(self, epoch: int) -> Tensor:
        """Indices of an epoch's samples, of all processes."""
        return epoch_order(self.length, self.seed, epoch)

    def __len__(self) -> int:
        return (self.length - self.done) // self.processes

    def __iter__(self) -> Iterator[Key]:
        order = self.order_of(self.epoch)[self.done :]
        share = order[self.rank :: self.processes][: len(self)]
        return ((self.epoch, index) for index in share.tolist())


class ShareSampler(Sampler[Key]):
    """This process's share of a data set: all shares together are every sample once."""

    def __init__(self, num_samples: int) -> None:
        self.indices = range(rank(), num_samples, world_size())

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        return ((0, index) for index in self.indices)
