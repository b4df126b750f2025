"""Running statistics of batch norms: alike in all processes, and only of updates that count."""

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.processes.group import world_size


class RunningStatistics:
    """The running means and variances of a model's batch norms, which evaluation uses.

    In every forward pass each process moves its own towards those of its micro-batch.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
        both = (buffer for norm in norms for buffer in (norm.running_mean, norm.running_var))
        self.buffers = [buffer for buffer in both if buffer is not None]
        self.before = torch.cat(self.buffers) if self.buffers else torch.empty(0)

    @torch.no_grad()
    def complete_update(self, grad_norm: Tensor) -> None:
        """Average them over the processes; take back those of an update that is not finite.

        Call it in all processes, with the same `grad_norm`.
        """
        if not self.buffers:
            return
        values = torch.cat(self.buffers)
        if world_size() > 1:
            distributed.all_reduce(values)
            values /= world_size()
        self.before = torch.where(grad_norm.isfinite(), values, self.before)
        parts = self.before.split([len(buffer) for buffer in self.buffers])
        torch._foreach_copy_(self.buffers, list(parts))
