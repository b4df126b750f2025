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
from utils.processes.statistics import RunningStatistics
from utils.randomness import UPDATE_STREAM, seed_all
from utils.training.losses import ComputeLoss
from utils.training.metrics import TrainingMetrics
from utils.training.run import Run


@dataclass
class Loop:
    """Arguments of the training loop; `model` is the state's, wrapped for its processes.

    `report` gets the figures of every `report_every`-th update and of the last one of an epoch.
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
    """Train the rest of an epoch: as many updates as the loader has batches for.

    An update averages the gradients of `run.accumulation_steps` micro-batches. An update whose loss
    or gradient is not finite leaves weights and running statistics unchanged.
    """
    run, state, model, metrics = loop.run, loop.state, loop.model, loop.metrics
    position, optimizer, scaler = state.position, state.optimizer, state.scaler
    first_index = position.images // position.images_per_update
    num_updates = first_index + len(loop.loader) // run.accumulation_steps
    statistics = RunningStatistics(state.model)
    model.train()
    batches = iter(loop.loader)
    for index in loop.progress(range(first_index, num_updates)):
        # Remember where in the data the update begins: tools.replay needs its pictures if it
        # diverges.
        metrics.begin_update(position)
        losses = torch.zeros((), device=run.device)
        for micro_batch in range(run.accumulation_steps):
            with metrics.waiting_for_data():
                batch = [part.to(run.device, non_blocking=True) for part in next(batches)]
            # Tell the other processes that this one has its data: one that lags here is named as
            # waiting for data.
            heartbeat.step()
            # Seed here, so that drop path, Mixup and erasing depend on these numbers alone and not
            # on earlier draws: a resumed run then repeats the run that was not stopped.
            seed_all(UPDATE_STREAM, run.seed, position.update, micro_batch, rank())
            # Average gradients over processes once per update, during the last backward pass;
            # earlier micro-batches only add to the local gradients.
            with synchronized_if(micro_batch == run.accumulation_steps - 1, model):
                with mixed_precision(model, run.device, run.amp_dtype):
                    loss = loop.compute_loss(model, batch) / run.accumulation_steps
                # `guarded` turns a non-finite loss into NaN gradients. Averaging spreads them, so
                # all processes skip the update without a further message.
                scaler.scale(metrics.guarded(loss)).backward()
            # Keep the number on the device: reading it would make the host wait for all work that
            # is queued there.
            losses += loss.detach()
        # Remove float16's loss scale first: the norm is that of the true gradients.
        scaler.unscale_(optimizer)
        grad_norm = clip_gradients(model, run.clip_grad)
        step_if_finite(optimizer, scaler, grad_norm)
        # Batch norms have seen this process's images only: average what they keep for evaluation.
        statistics.complete_update(grad_norm)
        # Free the gradients, whose memory the next forward pass can use.
        optimizer.zero_grad(set_to_none=True)
        metrics.add(position.update, losses, grad_norm)
        # With layer-wise decay the largest rate is the head's.
        lr = max(group["lr"] for group in optimizer.param_groups)
        record = {"update": position.update, "index": index, "num_updates": num_updates, "lr": lr}
        position.complete_update()
        state.scheduler.set_rates(position.place_in_schedule)
        if index % loop.report_every == 0 or index == num_updates - 1:
            loop.report(record | metrics.summary())
        # Average the weights after every update; validation uses the average.
        if state.average is not None:
            state.average.update(state.model)
        # Tell the other processes that this one finished the update; TRAIN.LOST_AFTER seconds
        # without such a sign end the run.
        heartbeat.step()
        # Save or stop here, where weights, moments, schedule and position are of the same update.
        loop.after_update()


def step_if_finite(optimizer: Optimizer, scaler: torch.amp.GradScaler, grad_norm: Tensor) -> None:
    """Update the weights if the gradients' norm is finite.

    A fused optimizer decides this on its device, so that the host does not wait.
    """
    if scaler.is_enabled():
        scaler.step(optimizer)  # which skips gradients that are not finite
    elif getattr(optimizer, "_step_supports_amp_scaling", False):
        # Fused kernels read these attributes, as GradScaler sets them, and skip the step.
        vars(optimizer).update(grad_scale=None, found_inf=(~grad_norm.isfinite()).float())
        optimizer.step()
    elif bool(grad_norm.isfinite()):
        optimizer.step()
    scaler.update()
