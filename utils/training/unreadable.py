"""Training pictures that cannot be read: their number over all processes, their names, a limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.processes.group import combine_over_processes, largest_over_processes, rank

_NAMED = 5  # in one line


class BrokenPictures:
    """Counts what `pictures` (data.careful.CarefulPictures) could not read; `warn` gets names.

    `limit` is the share of all pictures beyond which the run stops, `folder` where the list goes.
    """

    def __init__(
        self,
        pictures: Any,
        limit: float,
        folder: Path,
        warn: Callable[[str], None],
        device: torch.device,
    ) -> None:
        self.pictures, self.limit, self.folder, self.warn = pictures, limit, folder, warn
        self.device = device
        self.known = torch.zeros(len(pictures), dtype=torch.bool)

    def count(self) -> int:
        """How many there are; call it in all processes. Each is named once.

        ValueError where they are more than the limit: `broken_pictures.txt` then lists them.
        """
        own: Tensor = self.pictures.broken
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
