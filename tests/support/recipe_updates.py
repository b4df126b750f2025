"""Updates of recipes by the training loop, on noise that lies on the device."""

from pathlib import Path
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from yacs.config import CfgNode

from tests.support.small_runs import ROOT
from tools.measuring.workloads import Batches, build_stage, synthetic_batch
from utils.config import get_config, is_finetuning
from utils.files import RunFolder
from utils.training.engine import Loop
from utils.training.metrics import TrainingMetrics
from utils.training.run import Run, build_state

RECIPES = sorted(
    str(path.relative_to(ROOT / "configs"))
    for path in ROOT.glob("configs/*/simmim_*.yaml")
    if path.parent.name != "_base_"
)
PRETRAIN = "swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep.yaml"


class Unread(TrainingMetrics):
    """Figures that nobody reads."""

    def summary(self) -> dict[str, float]:
        """Reading the figures is what makes the host wait, once in PRINT_FREQ updates."""
        return {}


def short_recipe(recipe: str, *opts: Any) -> CfgNode:
    """A recipe with batches of two and its true sizes, but at most two blocks of a kind."""
    path = str(ROOT / "configs" / recipe)
    cfg = get_config(path)
    section = cfg.MODEL.TYPE.upper()
    key = {"VIT": "DEPTH", "RESNET": "LAYERS"}.get(section, "DEPTHS")
    depths: Any = cfg.MODEL[section][key]
    depths = 2 if section == "VIT" else [min(depth, 2) for depth in depths]
    short = [f"MODEL.{section}.{key}", depths, "TRAIN.ACCUMULATION_STEPS", 1]
    return get_config(path, ["DATA.BATCH_SIZE", 2, *short, *opts])


def build_loop(
    cfg: CfgNode,
    device: torch.device,
    precision: torch.dtype,
    updates: int,
    metrics: type[TrainingMetrics] = Unread,
) -> Loop:
    """The training loop of a recipe's stage: epochs of so many updates on the same batch."""
    with device:
        model, compute_loss = build_stage(cfg, device)
    run = Run(cfg, device, precision, RunFolder(Path()))
    state = build_state(run, model, updates, validates=is_finetuning(cfg))
    encoder: Any = getattr(model, "encoder", model)
    fake = detect_fake_mode()
    with unset_fake_temporarily():  # masks are drawn by NumPy
        batch: Any = synthetic_batch(cfg, encoder)
    batch = [(fake.from_tensor(part) if fake else part).to(device) for part in batch]
    images, scales = run.images_per_update, state.scaler.is_enabled()
    figures = metrics(device, images, cfg.TRAIN.MAX_SKIPPED, scales)
    batches: Any = Batches(batch, cfg.DATA.BATCH_SIZE, updates * run.accumulation_steps)
    return Loop(run, state, model, batches, compute_loss, figures, updates, lambda record: None)
