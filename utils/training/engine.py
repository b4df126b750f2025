"""The training loop of both stages."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from logger import Record
from utils.checkpoints.state import TrainState
from utils.processes import heartbeat
from utils.processes.group import rank, synchronized_if
from utils.processes.sharding import clip_gradients, mixed_precision
from utils.randomness import UPDATE_STREAM, seed_all
from utils.training.losses import ComputeLoss
from utils.training.metrics import TrainingMetrics
from utils.training.run import Run


@dataclass
class Loop:
    """What the training loop works with; `model` is the state's, distributed over the processes.

    `report` gets the figures of every `report_every`-th update and of an epoch's last one.
    """

    run: Run
    state: TrainState
    model: nn.Module
    loader: DataLoader[list[Tensor]]
    compute_loss: ComputeLoss
    metrics: TrainingMetrics
    report_every: int
    report: Callable[[Record], None]
    progress: Callable[[range], Iterable[int]] = iter
    after_update: Callable[[], None] = lambda: None


def train_one_epoch(loop: Loop) -> None:
    """Run what is left of an epoch: as many updates as the loader has batches for.

    An update averages the gradients of `run.accumulation_steps` micro-batches. Where loss or
    gradient are not finite the weights stay as they are.
    """
    run, state, model, metrics = loop.run, loop.state, loop.model, loop.metrics
    position, optimizer, scaler = state.position, state.optimizer, state.scaler
    first_index = position.images // position.images_per_update
    num_updates = first_index + len(loop.loader) // run.accumulation_steps
    model.train()
    batches = iter(loop.loader)
    for index in loop.progress(range(first_index, num_updates)):
        # Should this update diverge, its pictures are found by where it began.
        metrics.begin_update(position)
        losses = torch.zeros((), device=run.device)
        for micro_batch in range(run.accumulation_steps):
            with metrics.waiting_for_data():
                batch = [part.to(run.device, non_blocking=True) for part in next(batches)]
            # A process that is not here when the others are waits for its data: they can tell.
            heartbeat.step()
            # Drop path, Mixup and erasing follow from these numbers alone, not from what was drawn
            # before: a resumed run is the same run.
            seed_all(UPDATE_STREAM, run.seed, position.update, micro_batch, rank())
            # Processes exchange gradients once an update, while the last backward pass computes;
            # until then each adds up its own.
            with synchronized_if(micro_batch == run.accumulation_steps - 1, model):
                with mixed_precision(model, run.device, run.amp_dtype):
                    loss = loop.compute_loss(model, batch) / run.accumulation_steps
                # A loss that is not finite makes all gradients NaN, on all processes, by the same
                # exchange: they skip the update together without asking each other.
                scaler.scale(metrics.guarded(loss)).backward()
            # Numbers stay on the device until they are reported: reading one makes the host wait
            # for everything that is queued there.
            losses += loss.detach()
        # The norm is that of the true gradients, so float16's loss scale is taken off first.
        scaler.unscale_(optimizer)
        grad_norm = clip_gradients(model, run.clip_grad)
        step_if_finite(optimizer, scaler, grad_norm)
        # Memory of gradients goes to the next forward pass; the first backward pass writes instead
        # of adding.
        optimizer.zero_grad(set_to_none=True)
        metrics.add(position.update, losses, grad_norm)
        lr = max(group["lr"] for group in optimizer.param_groups)  # layer-wise decay: of the head
        place = {"update": position.update, "index": index, "num_updates": num_updates, "lr": lr}
        position.complete_update()
        state.scheduler.set_rates(position.place_in_schedule)
        if index % loop.report_every == 0 or index == num_updates - 1:
            loop.report(place | metrics.summary())
        # Validation uses this average of the weights; it moves even where the update was skipped.
        if state.average is not None:
            state.average.update(state.model)
        # The process has computed: whoever waits longer than LOST_AFTER without this is lost.
        heartbeat.step()
        # Everything belongs to the same update here: save, or stop where a signal asked for it.
        loop.after_update()


def step_if_finite(optimizer: Optimizer, scaler: torch.amp.GradScaler, grad_norm: Tensor) -> None:
    """Change the weights unless the gradients' norm is not finite.

    A fused optimizer decides that on its device, so that the host need not wait for it.
    """
    if scaler.is_enabled() or not getattr(optimizer, "_step_supports_amp_scaling", False):
        if scaler.is_enabled() or bool(grad_norm.isfinite()):
            scaler.step(optimizer)
    else:
        # The attributes that GradScaler sets on fused optimizers, which skip a step by them.
        vars(optimizer).update(grad_scale=None, found_inf=(~grad_norm.isfinite()).float())
        optimizer.step()
    scaler.update()
