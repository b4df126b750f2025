"""Pre-train an encoder with SimMIM.

torchrun --nproc_per_node N main_simmim.py --cfg FILE --data-path DIR [--output DIR --tag T]
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import build_pretrain_dataset, build_pretrain_loader
from data.build import PretrainDataset
from data.transforms import normalize
from logger import RunLog
from models import build_pretrain_model
from tools.reconstruct import draw_reconstructions
from utils.arguments import make_parser
from utils.checkpoint import resume, save_epoch
from utils.distributed import distribute, rank
from utils.engine import train_one_epoch
from utils.run import Run, build_parts, open_log, run_program, start_run


def compute_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Loss of a batch of uint8 images and masks."""
    image, mask = batch
    loss: Tensor = model(normalize(image), mask)
    return loss


def main() -> None:
    """Configuration, data, model, optimizer, resume, epochs."""
    run = start_run(make_parser(__doc__ or "").parse_args())
    cfg = run.cfg
    if cfg.PRETRAINED or cfg.EVAL_MODE or cfg.THROUGHPUT_MODE:
        raise ValueError(
            "PRETRAINED, EVAL_MODE and THROUGHPUT_MODE are for fine-tuning; "
            "pre-training goes on from a checkpoint with --resume"
        )
    model = build_pretrain_model(cfg).to(run.device)
    dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)
    loader = build_pretrain_loader(cfg, dataset, run.device)
    updates_per_epoch = len(loader) // run.accumulation_steps
    parts = build_parts(run, model, updates_per_epoch)
    start_epoch, notes = resume(run.folder, parts, cfg, updates_per_epoch, run.device)
    log = open_log(run, parts, notes)  # everything fits: only from here on files are written
    train(run, log, parts, loader, dataset, start_epoch)
    log.close()


def train(
    run: Run,
    log: RunLog,
    parts: dict[str, Any],
    loader: DataLoader[Any],
    dataset: PretrainDataset,
    start_epoch: int,
) -> None:
    """Train the remaining epochs, with checkpoints and pictures from the first process."""
    cfg, model = run.cfg, parts["model"]
    distributed_model = distribute(model, run.device)
    for epoch in range(start_epoch, cfg.TRAIN.EPOCHS):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        with log.epoch(epoch):
            train_one_epoch(
                distributed_model,
                loader,
                compute_loss,
                parts["optimizer"],
                parts["lr_scheduler"],
                parts["scaler"],
                device=run.device,
                accumulation_steps=run.accumulation_steps,
                clip_grad=cfg.TRAIN.CLIP_GRAD or math.inf,
                amp_dtype=run.amp_dtype,
                seed=cfg.SEED,
                report_every=cfg.PRINT_FREQ,
                report=log.report,
                progress=log.progress,
            )
        if rank() == 0 and is_due(epoch, cfg.SAVE_FREQ, cfg.TRAIN.EPOCHS):
            log.info("saved %s", save_epoch(run.folder, epoch, parts, cfg))
        if rank() == 0 and is_due(epoch, cfg.PICTURE_FREQ, cfg.TRAIN.EPOCHS):
            log.picture("reconstruction", draw_reconstructions(model, dataset, run.device))


def is_due(epoch: int, every: int, epochs: int) -> bool:
    """True in every `every`-th epoch from 0 and in the last; never where `every` is 0."""
    return every > 0 and (epoch % every == 0 or epoch == epochs - 1)


if __name__ == "__main__":
    run_program(main)
