"""Unreadable pictures: their substitutes, and how many a run accepts."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from data.pictures import RGB, Picture, VanishedError, without_pauses
from data.sources import LabelledSet, PictureSet, digest_of_set
from utils.processes.group import (
    combine_over_processes,
    largest_over_processes,
    raise_everywhere,
    rank,
)
from utils.randomness import SUBSTITUTE_STREAM, seeded

_BLANK_SIDE = 32
_TRIES = 16  # attempts: substitutes may be unreadable, too
_NAMED = 5  # names in one message
_EXPLAINED = 100  # pictures of a run that are read once more to tell why they cannot be read
_FEW, _PART = 3, 8  # unreadable pictures that small sets may hold: so many, at most one of 8


def most_unreadable(number: int, limit: float) -> int:
    """How many of `number` pictures may be unreadable: the share `limit`, in small sets 3.

    The 3 are at most an eighth. If `limit` is 0, none may be; all of them never may.
    """
    share = math.floor(number * limit + 1e-9)  # 0.29 x 100 is below 29
    few = min(_FEW, number // _PART) if limit else 0
    return min(max(share, few), number - 1)


class ReadablePictures:
    """A source's pictures by (epoch, index), with unreadable ones replaced by others.

    `unreadable` marks unreadable pictures, in memory that the loader's workers share with the main
    process. Marked ones are tried again in later epochs, without pauses: what a sample is follows
    from the files alone, not from what a process has met before.
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
                return self._try(chosen)
            except VanishedError:
                raise
            except ValueError as error:
                self.unreadable[chosen] = True
                reason = error
        raise ValueError(f"{reason}; nor could those that were to take its place")

    def _try(self, index: int) -> tuple[Picture, int]:
        with without_pauses(bool(self.unreadable[index])):
            return self.pictures[index]

    def reason(self, index: int) -> str:
        """Why a picture cannot be read, without its name: it is tried once more."""
        try:
            with without_pauses():
                self.pictures[index]
        except ValueError as error:
            return str(error).removeprefix(f"{self.name(index)} cannot be read as a picture: ")
        return "it could be read a moment later"

    @property
    def digest(self) -> str:
        """Digest of the source: the names, order and labels of its pictures."""
        return digest_of_set(self.pictures)

    def name(self, index: int) -> str:
        """The picture's name in messages: its path, if it has one."""
        return self.pictures.name(index)

    def named(self, indices: list[int]) -> str:
        """The names of the first pictures of some, for a message."""
        return ", ".join(map(self.name, indices[:_NAMED])) + " ..." * (len(indices) > _NAMED)

    def __str__(self) -> str:
        """The number of pictures and, for a folder, how they were found."""
        return getattr(self.pictures, "found", "") or f"{len(self)} images"


class EvalPictures(ReadablePictures):
    """Pictures for evaluation: an unreadable one is replaced by a black one, not by another."""

    pictures: LabelledSet

    def read_or_blank(self, index: int) -> tuple[Picture, int, bool]:
        """Picture, label and whether the picture was readable; an unreadable one is black."""
        try:
            picture, label = self._try(index)
            self.unreadable[index] = False
            return picture, label, True
        except VanishedError:
            raise
        except ValueError:
            self.unreadable[index] = True
        dtype = torch.uint8 if self.channels == RGB else torch.float32
        blank = torch.zeros(self.channels, _BLANK_SIDE, _BLANK_SIDE, dtype=dtype)
        return blank, int(self.pictures.labels[index]), False

    def require_readable(self, limit: float, device: torch.device) -> list[int]:
        """Return the indices that could not be read last time; call it in all processes.

        ValueError where they are more than `limit` allows (`most_unreadable`): they count as wrong,
        and an accuracy would be of other pictures than it says.
        """
        unread: list[int] = combine_over_processes(self.unreadable, device).nonzero()[:, 0].tolist()
        if len(unread) > most_unreadable(len(self), limit):
            message = (
                f"{too_many(len(unread), len(self), limit)}, so there is no accuracy: "
                f"{self.named(unread)} (python -m tools.scan says why)"
            )
            raise_everywhere(ValueError(message))
        return unread


def too_many(number: int, whole: int, limit: float) -> str:
    """Begin a message about `number` unreadable pictures of `whole`."""
    return (
        f"{number} of {whole} pictures cannot be read, more than the "
        f"{most_unreadable(whole, limit)} that DATA.MAX_BROKEN = {limit:g} allows"
    )


class UnreadableCount:
    """Count a data set's unreadable training pictures over all processes; `warn` gets names.

    `limit` is the share of all pictures above which the run stops (`most_unreadable`); the list
    goes to `folder`.
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
        self.reasons: dict[int, str] = {}  # of the first ones, in the first process

    def __call__(self) -> int:
        """Return their number and warn of new ones; all processes must call it together.

        ValueError where there are more than the limit; `broken_pictures.txt` then lists them.
        """
        own = self.pictures.unreadable
        if largest_over_processes(int((own & ~self.known).any()), self.device):
            found = combine_over_processes(own | self.known, self.device)
            for index in (found & ~self.known).nonzero().flatten().tolist():
                self._warn_of(index)
            self.known = found
        number = int(self.known.sum())
        if number > most_unreadable(len(self.known), self.limit):
            raise_everywhere(ValueError(self._too_many()))
        return number

    def _warn_of(self, index: int) -> None:
        if rank() == 0 and len(self.reasons) < _EXPLAINED:
            self.reasons[index] = self.pictures.reason(index)
        reason = self.reasons.get(index, "python -m tools.scan says why")
        name = self.pictures.name(index)
        self.warn(f"another picture takes the place of {name}, which cannot be read: {reason}")

    def _too_many(self) -> str:
        indices = self.known.nonzero().flatten().tolist()
        path = self.folder / "broken_pictures.txt"
        if rank() == 0:
            lines = [
                # Names are bytes, which need not be UTF-8.
                os.fsencode(self.pictures.name(index))
                + f"\t{self.reasons.get(index, '')}\n".encode(errors="backslashreplace")
                for index in indices
            ]
            path.write_bytes(b"".join(lines))
        return (
            f"{too_many(len(indices), len(self.known), self.limit)}: {self.pictures.named(indices)}"
            f" (all are in {path}; python -m tools.scan finds them beforehand)"
        )
