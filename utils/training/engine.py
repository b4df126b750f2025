"""The training loop of both stages."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from utils.processes.group import UPDATE_STREAM, rank, seed_all, synchronized_if
from utils.processes.sharding import clip_gradients, mixed_precision
from utils.training.metrics import TrainingMetrics

Batch = Any
Record = dict[str, Any]


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader[Batch],
    compute_loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
    metrics: TrainingMetrics,
    after_update: Callable[[], None] = lambda: None,
    *,
    first_index: int = 0,
    device: torch.device,
    accumulation_steps: int,
    clip_grad: float,
    amp_dtype: torch.dtype,
    seed: int,
    report_every: int,
    report: Callable[[Record], None],
    progress: Callable[[range], Iterable[int]],
) -> None:
    """Run the updates of one epoch, from the `first_index`-th on, with the batches of `loader`.

    An update averages the gradients of `accumulation_steps` micro-batches; what is random in it
    follows from (seed, update, micro-batch, rank), the update counted since the run's start by the
    scheduler. Where loss or gradient are not finite the weights stay as they are. `report` gets the
    figures of every `report_every`-th update and of the last one, then `after_update` is called.
    """
    model.train()
    num_updates = first_index + len(loader) // accumulation_steps
    batches = iter(loader)
    for index in progress(range(first_index, num_updates)):
        update = scheduler.num_steps
        losses = torch.zeros((), device=device)
        for micro_batch in range(accumulation_steps):
            with metrics.waiting_for_data():
                batch = [part.to(device, non_blocking=True) for part in next(batches)]
            seed_all(UPDATE_STREAM, seed, update, micro_batch, rank())
            with synchronized_if(micro_batch == accumulation_steps - 1, model):
                with mixed_precision(model, device, amp_dtype):
                    loss = compute_loss(model, batch) / accumulation_steps
                scaler.scale(metrics.guarded(loss)).backward()
            losses += loss.detach()
        scaler.unscale_(optimizer)
        grad_norm = clip_gradients(model, clip_grad)
        step_if_finite(optimizer, scaler, grad_norm)
        optimizer.zero_grad(set_to_none=True)
        lr = max(group["lr"] for group in optimizer.param_groups)
        scheduler.step()
        metrics.add(update, losses, grad_norm)
        if index % report_every == 0 or index == num_updates - 1:
            place = {"update": update, "index": index, "num_updates": num_updates, "lr": lr}
            report(place | metrics.summary())
        after_update()


def step_if_finite(optimizer: Optimizer, scaler: torch.amp.GradScaler, grad_norm: Tensor) -> None:
    """Change the weights unless the gradients' norm is not finite.

    A fused optimizer decides that on its device, so that the host need not wait for it.
    """
    if scaler.is_enabled() or not getattr(optimizer, "_step_supports_amp_scaling", False):
        if scaler.is_enabled() or bool(grad_norm.isfinite()):
            scaler.step(optimizer)
    else:
        fused: Any = optimizer
        fused.grad_scale, fused.found_inf = None, (~grad_norm.isfinite()).float()
        optimizer.step()
    scaler.update()
