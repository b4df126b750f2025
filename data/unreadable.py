"""Pictures that cannot be read: what takes their place, and how many a run accepts."""

from collections.abc import Callable
from pathlib import Path

import torch

from data.pictures import RGB, Picture, VanishedError
from data.sources import LabelledSet, PictureSet
from utils.processes.group import combine_over_processes, largest_over_processes, rank
from utils.randomness import SUBSTITUTE_STREAM, seeded

_BLANK_SIDE = 32
_TRIES = 16  # substitutes may be unreadable, too
_NAMED = 5  # in one line


class ReadablePictures:
    """A source's pictures, read by (epoch, index); another takes the place of an unreadable one.

    `unreadable` marks them. Loaders' workers do so in memory that all of them share with the main
    process.
    """

    def __init__(self, pictures: PictureSet, seed: int, channels: int = RGB) -> None:
        self.pictures, self.seed, self.channels = pictures, seed, channels
        self.unreadable = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, epoch: int, index: int) -> tuple[Picture, int]:
        """Picture and label; a substitute follows from (seed, epoch, index) alone.

        ValueError where many in a row are unreadable, and where the whole folder has vanished.
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

    def name(self, index: int) -> str:
        """What a person calls a picture: its path, if it has one."""
        return self.pictures.name(index)

    def __str__(self) -> str:
        """How many there are, and how they were found where they had to be looked for."""
        return getattr(self.pictures, "found", "") or f"{len(self)} images"


class EvalPictures(ReadablePictures):
    """The same for evaluation, where nothing may take a picture's place: it is black."""

    pictures: LabelledSet

    def read_or_blank(self, index: int) -> tuple[Picture, int, bool]:
        """Picture, label and whether it could be read; else the picture is black."""
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
    """Counts a data set's unreadable training pictures over all processes; `warn` gets names.

    `limit` is the share of all pictures beyond which the run stops, `folder` where the list goes.
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
        """How many there are; call it in all processes. Each is named once.

        ValueError where they are more than the limit: `broken_pictures.txt` then lists them.
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
