"""Draw reconstructions by a pre-trained model: original | masked | reconstruction.

python -m tools.reconstruct --cfg FILE [--resume CKPT] [--data-path DIR] --picture out.png

Without --resume it takes the newest checkpoint of the run that the configuration names.
"""

import argparse

from utils.config.arguments import make_parser, positive_integer, read_config, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    flags = ("--cfg", "--opts", "--data-path", "--resume", "--device", "--output", "--tag")
    parser = make_parser("-m tools.reconstruct", __doc__, flags)
    parser.add_argument(
        "--picture", default="reconstruction.png", metavar="FILE", help="[reconstruction.png]"
    )
    parser.add_argument(
        "--rows", type=positive_integer, default=8, metavar="N", help="pictures [8]"
    )
    arguments = parser.parse_args()
    if arguments.rows < 1:
        raise ValueError(f"--rows is {arguments.rows}, expected 1 or more")
    return arguments


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

from pathlib import Path

from data import build_pretrain_dataset
from data.drawing import COLUMNS, draw_reconstructions, save_picture
from models import load_simmim
from utils.checkpoints.contents import newest_checkpoint
from utils.config import is_finetuning
from utils.processes.exit_status import run_program
from utils.training.run import run_folder, set_up_device


def main() -> None:
    """Read a checkpoint, draw held-out samples where the data set has them, write the picture."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    if is_finetuning(cfg):
        raise ValueError(f"{arguments.cfg} is for fine-tuning, expected a recipe of pre-training")
    device = set_up_device(cfg)
    path = Path(cfg.MODEL.RESUME) if cfg.MODEL.RESUME else None
    if path is None:
        path, _ = newest_checkpoint(run_folder(cfg), warn=print)
    if path is None:
        raise ValueError(f"no usable checkpoint in {run_folder(cfg)}: give --resume CKPT")
    model = load_simmim(path, cfg)
    dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size, train=False)
    picture = draw_reconstructions(model.to(device), dataset, device, arguments.rows)
    for index in dataset.pictures.unreadable.nonzero().flatten().tolist():
        print(f"{dataset.pictures.name(index)} cannot be read; another picture takes its place")
    save_picture(picture, arguments.picture)
    rows = f"{' | '.join(COLUMNS)}, {min(arguments.rows, len(dataset))} rows"
    print(f"wrote {arguments.picture} ({rows}) from {path}")


if __name__ == "__main__":
    run_program(main)
