"""One epoch of a tiny regression through the training loop."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lr_scheduler import build_scheduler
from utils.config import get_config
from utils.training.engine import train_one_epoch
from utils.training.metrics import TrainingMetrics


def squared_error(model: nn.Module, batch: list[Tensor]) -> Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def run_epoch(
    batch_size: int,
    *,
    model: nn.Module | None = None,
    optimizer: Any = None,
    scaler: Any = None,
    **settings: Any,
) -> tuple[nn.Module, list[dict[str, Any]], float]:
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
    cfg = get_config(None, ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0])
    reports: list[dict[str, Any]] = []
    defaults: dict[str, Any] = dict(
        device=torch.device("cpu"),
        accumulation_steps=1,
        clip_grad=math.inf,
        amp_dtype=torch.float32,
        seed=0,
        report_every=1,
        report=reports.append,
        progress=lambda updates: updates,
    )
    train_one_epoch(
        model,
        loader,
        squared_error,
        optimizer,
        build_scheduler(cfg, optimizer, 4),
        scaler,
        TrainingMetrics(torch.device("cpu"), batch_size, 3, scaler.is_enabled()),
        **defaults | settings,
    )
    return model, reports, reports[-1]["loss_mean"]
