"""Which samples a process gets, in which order."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils.processes.group import rank, world_size

Key = tuple[int, int]  # (epoch, index of the sample)


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
