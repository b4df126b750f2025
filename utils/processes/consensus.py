"""What all processes do at the same update although only one knows of it."""

from collections.abc import Callable, Sequence

import torch
from torch import distributed

from utils.processes.group import gloo_group, world_size


class Consensus:
    """Requests of any process, answered to all of them at the same update.

    A request is a number below 256, 0 for none; of several the largest counts. With several
    processes the requests of one update are answered at the next, so that no process waits: they
    travel between CPUs (gloo) while the devices compute.
    """

    def __init__(self, requests: Callable[[], Sequence[int]]) -> None:
        self.requests = requests
        self.alone = world_size() == 1
        self.group = None if self.alone else gloo_group()
        self.asked = torch.zeros(len(requests()), dtype=torch.uint8)
        self.work: distributed.Work | None = None

    def ask(self) -> None:
        """Send this process's requests to the others."""
        if not self.alone:
            self.asked = torch.tensor(self.requests(), dtype=torch.uint8)
            operation = distributed.ReduceOp.MAX
            self.work = distributed.all_reduce(self.asked, operation, self.group, async_op=True)

    def decide(self) -> Sequence[int]:
        """Which requests the processes had when they asked; alone, which there are."""
        if self.alone:
            return self.requests()
        if self.work is not None:
            self.work.wait()
        return self.asked.tolist()
