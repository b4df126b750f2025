"""Pictures that may be broken: what takes their place, and which they are."""

from typing import Any

import torch
from torch.utils.data import Subset

from data.pictures import RGB, Picture, VanishedError
from utils.processes.group import SUBSTITUTE_STREAM, seeded

_BLANK_SIDE = 32
_TRIES = 16  # substitutes may be broken, too


class CarefulPictures:
    """A data set's pictures, read by (epoch, index); `broken` marks those that cannot be.

    Loaders' workers mark them in memory that all of them share with the main process.
    """

    def __init__(self, pictures: Any, seed: int, channels: int = RGB) -> None:
        self.pictures, self.seed, self.channels = pictures, seed, channels
        self.broken = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, epoch: int, index: int) -> tuple[Picture, int]:
        """Picture and label; in place of a broken one another, by (seed, epoch, index) alone.

        ValueError where many in a row are broken, and where the whole folder has vanished.
        """
        for attempt in range(_TRIES):
            chosen = index
            if attempt:
                with seeded(SUBSTITUTE_STREAM, self.seed, epoch, index, attempt):
                    chosen = int(torch.randint(len(self), ()))
            try:
                return self.pictures[chosen]
            except VanishedError:
                raise
            except ValueError as error:
                self.broken[chosen] = True
                reason = error
        raise ValueError(f"{reason}; nor could {_TRIES - 1} others that were to take its place")

    def read_or_blank(self, index: int) -> tuple[Picture, int, bool]:
        """Picture, label and whether it could be read; else the picture is black."""
        try:
            return *self.pictures[index], True
        except VanishedError:
            raise
        except ValueError:
            self.broken[index] = True
        dtype = torch.uint8 if self.channels == RGB else torch.float32
        blank = torch.zeros(self.channels, _BLANK_SIDE, _BLANK_SIDE, dtype=dtype)
        return blank, int(self.pictures.labels[index]), False

    def name(self, index: int) -> str:
        """What a person calls a picture: its path, if it has one."""
        if isinstance(self.pictures, Subset):
            whole: Any = self.pictures.dataset
            return str(whole.name(self.pictures.indices[index]))
        return str(self.pictures.name(index))

    def __str__(self) -> str:
        """How many there are, and how they were found where they had to be looked for."""
        whole = self.pictures.dataset if isinstance(self.pictures, Subset) else self.pictures
        return getattr(whole, "found", "") or f"{len(self)} images"
