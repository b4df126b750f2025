"""Decisions that all processes take at the same update, although one process asks for them."""

from collections.abc import Callable, Sequence

import torch
from torch import distributed

from utils.processes.group import gloo_group, world_size


class Consensus:
    """Share the requests of each process with all of them at the same update.

    A request is a number below 256; 0 is none. The largest over all processes counts. With several
    processes the requests of one update are known at the next, so that no process waits: gloo
    exchanges them between CPUs while the devices compute.
    """

    def __init__(self, requests: Callable[[], Sequence[int]]) -> None:
        self.requests = requests
        self.alone = world_size() == 1
        self.group = None if self.alone else gloo_group()
        self.asked = torch.zeros(len(requests()), dtype=torch.uint8)
        self.work: distributed.Work | None = None

    def ask(self) -> None:
        """Start to send this process's requests to the others; call it in all processes."""
        if not self.alone:
            self.asked = torch.tensor(self.requests(), dtype=torch.uint8)
            operation = distributed.ReduceOp.MAX
            self.work = distributed.all_reduce(self.asked, operation, self.group, async_op=True)

    def decide(self) -> Sequence[int]:
        """The largest requests over all processes at the last `ask`; of one process, its own."""
        if self.alone:
            return self.requests()
        if self.work is not None:
            self.work.wait()
        return self.asked.tolist()
