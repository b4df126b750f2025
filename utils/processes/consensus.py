"""What all processes do at the same update although only one knows of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed

from utils.processes.group import world_size


class Agreement:
    """Wishes of any process, answered to all of them at the same update.

    A wish is a number below 256, 0 for none; of several the largest counts. With several processes
    the question of one update is answered at the next, so that nobody waits: it travels over the
    CPUs (gloo) while the devices compute.
    """

    def __init__(self, wishes: Callable[[], Sequence[int]]) -> None:
        self.wishes = wishes
        self.alone = world_size() == 1
        self.group: Any = None if self.alone else distributed.new_group(backend="gloo")
        self.asked = torch.zeros(len(wishes()), dtype=torch.uint8)
        self.work: distributed.Work | None = None

    def ask(self) -> None:
        """Send this process's wishes to the others."""
        if not self.alone:
            self.asked = torch.tensor(self.wishes(), dtype=torch.uint8)
            operation = distributed.ReduceOp.MAX
            self.work = distributed.all_reduce(self.asked, operation, self.group, async_op=True)

    def decide(self) -> Sequence[int]:
        """Which wishes the processes had when they asked; alone, which there are."""
        if self.alone:
            return self.wishes()
        if self.work is not None:
            self.work.wait()
        return self.asked.tolist()
