"""The parts of a run, as small as they can be: what checkpoints are made of."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lr_scheduler import build_scheduler
from utils.checkpoints.position import Progress
from utils.checkpoints.state import save_checkpoint, training_state
from utils.config import get_config

CPU = torch.device("cpu")
UPDATES = 10  # in an epoch
IMAGES = 4  # in an update


def parts_of(width: int = 4) -> dict[str, Any]:
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scheduler = build_scheduler(get_config(), optimizer, 10)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    parts = dict(model=model, optimizer=optimizer, lr_scheduler=scheduler, scaler=scaler)
    return parts | {"progress": Progress(images_per_update=IMAGES)}


def save_epoch(path: Path, epoch: int, parts: dict[str, Any], cfg: Any) -> None:
    """The checkpoint at the end of an epoch."""
    parts["progress"].epoch = epoch
    parts["progress"].complete_epoch()
    parts["lr_scheduler"].num_steps = max(parts["lr_scheduler"].num_steps, 10 * (epoch + 1))
    save_checkpoint(path, training_state(parts, cfg))


def train_a_little(parts: dict[str, Any]) -> None:
    parts["model"](torch.ones(1, 4)).sum().backward()
    parts["optimizer"].step()
    parts["lr_scheduler"].step()
