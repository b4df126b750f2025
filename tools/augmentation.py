"""Draw the augmentation of fine-tuning: augmented | mixed and erased.

python -m tools.augmentation --cfg FILE [--data-path DIR] --picture out.png
"""

import argparse

from utils.config.arguments import make_parser, read_config, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    flags = ("--cfg", "--opts", "--data-path")
    parser = make_parser("-m tools.augmentation", __doc__, flags)
    parser.add_argument(
        "--picture", default="augmentation.png", metavar="FILE", help="[augmentation.png]"
    )
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import torch

from data import build_batch_augmentation, build_train_dataset
from data.drawing import MIXED_ROWS, draw_augmentation, save_picture
from utils.processes.exit_status import run_program


def main() -> None:
    """Read the configuration, draw, write the picture."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    dataset = build_train_dataset(cfg)
    device = torch.device("cpu")
    augment = build_batch_augmentation(cfg, len(dataset.classes), device)
    save_picture(draw_augmentation(dataset, augment, device), arguments.picture)
    print(f"wrote {arguments.picture} (augmented | mixed and erased, {MIXED_ROWS} rows)")


if __name__ == "__main__":
    run_program(main)
