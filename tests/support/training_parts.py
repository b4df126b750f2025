"""The parts of a run, as small as they can be: what checkpoints are made of."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lr_scheduler import build_scheduler
from utils.checkpoints.contents import save_checkpoint
from utils.checkpoints.resume import resume
from utils.checkpoints.state import Position, TrainState, training_content
from utils.config import get_config
from utils.files import RunFolder

CPU = torch.device("cpu")
UPDATES = 10  # in an epoch
IMAGES = 4  # in an update


def parts_of(width: int = 4) -> TrainState:
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scheduler = build_scheduler(get_config(), optimizer, 10)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, optimizer, scheduler, scaler, Position(IMAGES))


def save_epoch(path: Path, epoch: int, parts: TrainState, cfg: Any) -> None:
    """The checkpoint at the end of an epoch."""
    parts.position.epoch = epoch
    parts.position.complete_epoch()
    parts.position.update = max(parts.position.update, 10 * (epoch + 1))
    save_checkpoint(path, training_content(parts, cfg))


def train_a_little(parts: TrainState) -> None:
    parts.model(torch.ones(1, 4)).sum().backward()
    parts.optimizer.step()
    parts.position.complete_update()


def resumed_epoch(folder: RunFolder, cfg: Any) -> int:
    """The epoch at which fresh parts stand after a resume."""
    parts = parts_of()
    resume(folder, parts, cfg, UPDATES, CPU)
    return parts.position.epoch
