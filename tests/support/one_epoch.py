"""One epoch of a tiny regression through the training loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lr_scheduler import build_scheduler
from utils.checkpoints.state import Position, TrainState
from utils.config import get_config
from utils.files import RunFolder
from utils.training.engine import Loop, Record, train_one_epoch
from utils.training.metrics import TrainingMetrics
from utils.training.run import Run


def squared_error(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def run_epoch(
    batch_size: int,
    *opts: Any,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
    report_every: int = 1,
    offset: int = 0,
) -> tuple[nn.Module, list[Record], float]:
    """One epoch over 32 samples; the model, the reports, the mean loss."""
    torch.manual_seed(0)
    model = model or nn.Linear(5, 3).double()
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 5, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randn(32, 3, generator=generator, dtype=torch.float64).to(dtype)
    loader: Any = DataLoader(TensorDataset(inputs, targets), batch_size)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    settings = ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.CLIP_GRAD", 0.0]
    cfg = get_config(None, [*settings, "DATA.BATCH_SIZE", batch_size, *opts])
    run = Run(cfg, torch.device("cpu"), torch.float32, RunFolder(Path()))
    scheduler = build_scheduler(cfg, optimizer, 4)
    state = TrainState(
        model, optimizer, scheduler, scaler, Position(run.images_per_update, offset=offset)
    )
    reports: list[Record] = []
    metrics = TrainingMetrics(run.device, batch_size, 3, scaler.is_enabled())
    train_one_epoch(
        Loop(run, state, model, loader, squared_error, metrics, report_every, reports.append)
    )
    return model, reports, reports[-1]["loss_mean"]
