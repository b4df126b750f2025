"""Pre-train an encoder with SimMIM.

torchrun --nproc_per_node N main_simmim.py --cfg FILE --data-path DIR [--output DIR --tag T]
"""

from utils import preemption

if __name__ == "__main__":
    preemption.listen()  # signals come and launchers go while torch is imported, too

from torch import Tensor, nn

from data import build_pretrain_dataset, build_train_loader
from data.transforms import Normalizer
from models import build_pretrain_model
from tools.reconstruct import draw_reconstructions
from utils.arguments import make_parser
from utils.distributed import rank
from utils.program import run_program
from utils.resume import resume
from utils.run import build_parts, is_due, open_log, place_model, start_run
from utils.sharding import is_sharded
from utils.training import ComputeLoss, Training


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
    start = resume(run.folder, parts, cfg, updates_per_epoch, run.device)
    log = open_log(run, parts, start)  # everything fits: only from here on files are written
    training = Training(run, log, parts, loader, pretrain_loss(dataset.normalize))
    for epoch in range(start.epoch, cfg.TRAIN.EPOCHS):
        training.train_epoch(epoch)
        training.complete_epoch(save=is_due(epoch, cfg.SAVE_FREQ, cfg.TRAIN.EPOCHS))
        drawing = rank() == 0 or is_sharded(model)  # whose processes compute together
        if drawing and is_due(epoch, cfg.PICTURE_FREQ, cfg.TRAIN.EPOCHS):
            log.picture("reconstruction", draw_reconstructions(model, dataset, run.device))
    training.close()


def pretrain_loss(normalize: Normalizer) -> ComputeLoss:
    """The masked loss of a batch."""

    def compute_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        image, mask = batch
        loss: Tensor = model(normalize(image), mask)
        return loss

    return compute_loss


if __name__ == "__main__":
    run_program(main, resumes=True)
