"""The training loop of both stages."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from utils.distributed import UPDATE_STREAM, rank, seed_all, synchronized_if, world_size
from utils.metrics import EpochMetrics
from utils.sharding import clip_gradients, mixed_precision

Batch = Any
Record = dict[str, Any]


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader[Batch],
    compute_loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
    after_update: Callable[[], None] = lambda: None,
    *,
    device: torch.device,
    accumulation_steps: int,
    clip_grad: float,
    amp_dtype: torch.dtype,
    seed: int,
    report_every: int,
    report: Callable[[Record], None],
    progress: Callable[[range], Iterable[int]],
) -> float:
    """Run one epoch of updates and return its mean loss over all processes.

    An update averages the gradients of `accumulation_steps` micro-batches; what is random in it
    follows from (seed, update, micro-batch, rank), the update counted since the run's start by the
    scheduler. After each, `after_update` is called; `report` gets the figures of every
    `report_every`-th and of the last one.
    """
    model.train()
    num_updates = len(loader) // accumulation_steps
    images_per_update = (loader.batch_size or 1) * accumulation_steps * world_size()
    metrics = EpochMetrics(device, images_per_update)
    batches = iter(loader)
    record: Record = {}
    for index in progress(range(num_updates)):
        update = scheduler.num_steps
        losses = torch.zeros((), device=device)
        for micro_batch in range(accumulation_steps):
            with metrics.waiting_for_data():
                batch = [part.to(device, non_blocking=True) for part in next(batches)]
            seed_all(UPDATE_STREAM, seed, update, micro_batch, rank())
            with synchronized_if(micro_batch == accumulation_steps - 1, model):
                with mixed_precision(model, device, amp_dtype):
                    loss = compute_loss(model, batch) / accumulation_steps
                scaler.scale(loss).backward()
            losses += loss.detach()
        scaler.unscale_(optimizer)
        grad_norm = clip_gradients(model, clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        lr = max(group["lr"] for group in optimizer.param_groups)
        scheduler.step()
        after_update()
        metrics.add(losses, grad_norm)
        if index % report_every == 0 or index == num_updates - 1:
            record = metrics.summary()
            place = {"update": update, "index": index, "num_updates": num_updates, "lr": lr}
            report(place | record)
    return float(record["loss_mean"])
