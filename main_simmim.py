"""Pre-train an encoder with SimMIM.

torchrun --nproc_per_node N main_simmim.py --cfg FILE --data-path DIR [--output DIR --tag T]
"""

from utils import preemption
from utils.arguments import read_early, read_program

if __name__ == "__main__":  # before torch is imported, which takes seconds
    preemption.listen()  # signals come and launchers go meanwhile, too
    read_early(lambda: read_program("main_simmim.py", __doc__))

from torch import Tensor, nn

from data import build_pretrain_dataset, build_train_loader
from data.transforms import Normalizer
from models import build_pretrain_model
from tools.reconstruct import draw_reconstructions
from utils.distributed import rank
from utils.program import run_program
from utils.resume import resume
from utils.run import build_parts, is_due, open_log, place_model, start_run
from utils.sharding import is_sharded
from utils.training import ComputeLoss, Training


def main() -> None:
    """Configuration, data, model, optimizer, resume, epochs."""
    run = start_run(read_program("main_simmim.py", __doc__))
    cfg = run.cfg
    model = build_pretrain_model(cfg)
    dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)
    loader = build_train_loader(cfg, dataset, run.device)
    updates_per_epoch = len(loader) // run.accumulation_steps
    parts = build_parts(run, place_model(run, model), updates_per_epoch)
    start = resume(run.output, parts, cfg, updates_per_epoch, run.device)
    log = open_log(run, parts, start)  # everything fits: only from here on files are written
    log.info("%s", dataset.pictures)
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
