"""Pre-train an encoder with SimMIM.

torchrun --nproc_per_node N main_simmim.py --cfg FILE --data-path DIR [--output DIR --tag T]
"""

from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import build_pretrain_dataset, build_train_loader
from data.samples import PretrainDataset
from logger import RunLog
from models import build_pretrain_model
from tools.reconstruct import draw_reconstructions
from utils.arguments import make_parser
from utils.checkpoint import epoch_path, save_epoch
from utils.distributed import distribute, rank
from utils.resume import resume
from utils.run import (
    Run,
    build_parts,
    is_due,
    open_log,
    place_model,
    run_epoch,
    run_program,
    start_run,
)
from utils.sharding import is_sharded


def main() -> None:
    """Configuration, data, model, optimizer, resume, epochs."""
    run = start_run(make_parser(__doc__ or "").parse_args())
    cfg = run.cfg
    if cfg.PRETRAINED or cfg.EVAL_MODE or cfg.THROUGHPUT_MODE:
        raise ValueError(
            "PRETRAINED, EVAL_MODE and THROUGHPUT_MODE are for fine-tuning; "
            "pre-training goes on from a checkpoint with --resume"
        )
    model = build_pretrain_model(cfg)
    dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)
    loader = build_train_loader(cfg, dataset, run.device)
    updates_per_epoch = len(loader) // run.accumulation_steps
    parts = build_parts(run, place_model(run, model), updates_per_epoch)
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
    """Train the remaining epochs, with checkpoints and pictures."""
    cfg, model = run.cfg, parts["model"]

    def compute_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        image, mask = batch
        loss: Tensor = model(dataset.normalize(image), mask)
        return loss

    distributed_model = distribute(model, run.device)
    for epoch in range(start_epoch, cfg.TRAIN.EPOCHS):
        run_epoch(run, log, epoch, parts, distributed_model, loader, compute_loss)
        if is_due(epoch, cfg.SAVE_FREQ, cfg.TRAIN.EPOCHS):
            path = epoch_path(run.folder, epoch)
            log.info("saved %s", save_epoch(path, epoch, parts, cfg))
        drawing = rank() == 0 or is_sharded(model)  # whose processes compute together
        if drawing and is_due(epoch, cfg.PICTURE_FREQ, cfg.TRAIN.EPOCHS):
            log.picture("reconstruction", draw_reconstructions(model, dataset, run.device))


if __name__ == "__main__":
    run_program(main, resumes=True)
