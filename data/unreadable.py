"""Unreadable pictures: their substitutes, and how many a run accepts."""

from collections.abc import Callable
from pathlib import Path

import torch

from data.pictures import RGB, Picture, VanishedError
from data.sources import LabelledSet, PictureSet, digest_of_set
from utils.processes.group import combine_over_processes, largest_over_processes, rank
from utils.randomness import SUBSTITUTE_STREAM, seeded

_BLANK_SIDE = 32
_TRIES = 16  # attempts: substitutes may be unreadable, too
_NAMED = 5  # names in one error message


class ReadablePictures:
    """A source's pictures by (epoch, index), with unreadable ones replaced by others.

    `unreadable` marks unreadable pictures, in memory that the loader's workers share with the main
    process.
    """

    def __init__(self, pictures: PictureSet, seed: int, channels: int = RGB) -> None:
        self.pictures, self.seed, self.channels = pictures, seed, channels
        self.unreadable = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, epoch: int, index: int) -> tuple[Picture, int]:
        """Picture and label; (seed, epoch, index) alone determines a substitute.

        ValueError where all attempts fail; VanishedError where the whole folder is gone.
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
                self.unreadable[chosen] = True
                reason = error
        raise ValueError(f"{reason}; nor could {_TRIES - 1} others that were to take its place")

    @property
    def digest(self) -> str:
        """Digest of the source: the names, order and labels of its pictures."""
        return digest_of_set(self.pictures)

    def name(self, index: int) -> str:
        """The picture's name in messages: its path, if it has one."""
        return self.pictures.name(index)

    def __str__(self) -> str:
        """The number of pictures and, for a folder, how they were found."""
        return getattr(self.pictures, "found", "") or f"{len(self)} images"


class EvalPictures(ReadablePictures):
    """Pictures for evaluation: an unreadable one is replaced by a black one, not by another."""

    pictures: LabelledSet

    def read_or_blank(self, index: int) -> tuple[Picture, int, bool]:
        """Picture, label and whether the picture was readable; an unreadable one is black."""
        try:
            return *self.pictures[index], True
        except VanishedError:
            raise
        except ValueError:
            self.unreadable[index] = True
        dtype = torch.uint8 if self.channels == RGB else torch.float32
        blank = torch.zeros(self.channels, _BLANK_SIDE, _BLANK_SIDE, dtype=dtype)
        return blank, int(self.pictures.labels[index]), False


class UnreadableCount:
    """Count a data set's unreadable training pictures over all processes; `warn` gets names.

    `limit` is the share of all pictures above which the run stops; the list goes to `folder`.
    """

    def __init__(
        self,
        pictures: ReadablePictures,
        limit: float,
        folder: Path,
        warn: Callable[[str], None],
        device: torch.device,
    ) -> None:
        self.pictures, self.limit, self.folder, self.warn = pictures, limit, folder, warn
        self.device = device
        self.known = torch.zeros(len(pictures), dtype=torch.bool)

    def __call__(self) -> int:
        """Return their number and warn of new ones; all processes must call it together.

        ValueError where there are more than the limit; `broken_pictures.txt` then lists them.
        """
        own = self.pictures.unreadable
        if largest_over_processes(int((own & ~self.known).any()), self.device):
            found = combine_over_processes(own | self.known, self.device)
            for index in (found & ~self.known).nonzero().flatten().tolist():
                name = self.pictures.name(index)
                self.warn(
                    f"another picture takes the place of {name}, which cannot be read "
                    "(python -m tools.scan says why)"
                )
            self.known = found
        number = int(self.known.sum())
        if number > self.limit * len(self.known):
            raise ValueError(self._too_many(number))
        return number

    def _too_many(self, number: int) -> str:
        names = [self.pictures.name(index) for index in self.known.nonzero().flatten().tolist()]
        path = self.folder / "broken_pictures.txt"
        if rank() == 0:
            path.write_text("\n".join(names) + "\n", encoding="utf-8")
        return (
            f"{number} of {len(self.known)} pictures cannot be read, more than DATA.MAX_BROKEN = "
            f"{self.limit:g} of them: {', '.join(names[:_NAMED])}{' ...' * (number > _NAMED)} "
            f"(all are in {path}; python -m tools.scan finds them beforehand)"
        )
