"""Where a run stands: part of every checkpoint, so that the run can go on from there."""

import math
from typing import Any

_NUM_FIGURES = 8  # of a process


class Progress:
    """The epoch, how many of its images are trained on, and its figures so far.

    `figures` has a row for each process, of `TrainingMetrics`.
    """

    def __init__(self, epoch: int = 0, images_per_update: int = 0) -> None:
        self.epoch = epoch  # all before it are complete, with their validation
        self.images = 0
        self.images_per_update = images_per_update
        self.figures: list[list[float]] = []

    def complete_epoch(self) -> None:
        """Stand at the beginning of the next one."""
        self.epoch, self.images = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an earlier run; ValueError for figures that are none."""
        for row in state["figures"]:
            finite = all(isinstance(value, float) and math.isfinite(value) for value in row)
            if len(row) != _NUM_FIGURES or not finite:
                raise ValueError("its figures are none")
        self.__dict__.update({name: state[name] for name in self.__dict__})
