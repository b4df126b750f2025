"""Pre-train an encoder with SimMIM.

torchrun --nproc_per_node N main_simmim.py --cfg FILE --data-path DIR [--output DIR --tag T]
"""

from utils.config.arguments import read_early, read_program
from utils.processes import signals

if __name__ == "__main__":  # before torch is imported, which takes seconds
    signals.listen()  # signals may arrive and launchers may end during the imports
    read_early(lambda: read_program("main_simmim.py", __doc__))


from data import build_pretrain_dataset, build_train_loader
from data.drawing import draw_reconstructions
from data.first_look import describe
from data.unreadable import UnreadableCount
from models import build_pretrain_model, target_file
from utils.checkpoints.resume import resume
from utils.checkpoints.state import Data
from utils.digest import digest_of_file
from utils.processes.exit_status import run_program
from utils.processes.group import rank
from utils.processes.sharding import is_sharded
from utils.training.agreement import require_same_parts, require_same_state
from utils.training.engine import train_one_epoch
from utils.training.epochs import Training
from utils.training.losses import pretrain_loss
from utils.training.run import build_state, is_due, open_log, place_model, start_run


def main() -> None:
    """Build model, data and optimizer from the configuration; resume; train all epochs."""
    run = start_run(read_program("main_simmim.py", __doc__))
    cfg = run.cfg
    model = build_pretrain_model(cfg)
    dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)
    require_same_parts(model, {"training": dataset})
    loader = build_train_loader(cfg, dataset, run.device)
    updates_per_epoch = len(loader) // run.accumulation_steps
    state = build_state(run, place_model(run, model), updates_per_epoch)
    data = Data(len(dataset), dataset.pictures.digest, digest_of_file(target_file(cfg)))
    start = resume(run.output, state, cfg, updates_per_epoch, run.device, data=data)
    require_same_state(state)
    log = open_log(run, state, start)  # everything fits: no file is written before this
    describe(dataset, log.info, log.warning)
    if model.not_drawn:
        log.info("%s", model.not_drawn)
    unreadable = UnreadableCount(
        dataset.pictures, cfg.DATA.MAX_BROKEN, run.folder, log.warning, run.device
    )
    compute_loss = pretrain_loss(dataset.normalize)
    training = Training(run, log, state, loader, compute_loss, unreadable)
    for epoch in range(state.position.epoch, cfg.TRAIN.EPOCHS):
        with training.epoch():
            train_one_epoch(training.loop)
        training.complete_epoch(save=is_due(epoch, cfg.SAVE_FREQ, cfg.TRAIN.EPOCHS))
        drawing = rank() == 0 or is_sharded(model)  # all processes must compute it
        drawing = drawing and not model.not_drawn
        if drawing and is_due(epoch, cfg.PICTURE_FREQ, cfg.TRAIN.EPOCHS):
            log.picture("reconstruction", draw_reconstructions(model, dataset, run.device))
    training.close()


if __name__ == "__main__":
    run_program(main, resumes=True)
