"""Draw what a pre-trained model makes of hidden patches: original | masked | reconstruction.

python -m tools.reconstruct --cfg FILE [--resume CKPT] [--data-path DIR] --picture out.png

Without --resume it takes the newest checkpoint of the run that the configuration names.
"""

import argparse

from utils.arguments import make_parser, positive_integer, read_config, read_early


def read_arguments() -> argparse.Namespace:
    """The command line."""
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

import torch
from PIL import Image

from data import build_pretrain_dataset
from data.samples import PretrainDataset
from data.transforms import to_uint8
from models import load_simmim
from models.simmim import SimMIM, resize_mask
from tools.picture import picture_grid, save_picture, spread
from utils.checkpoint import newest_checkpoint
from utils.config import is_finetuning
from utils.device import choose_device
from utils.program import run_program
from utils.run import run_folder

COLUMNS = ("original", "masked", "reconstruction")
_HIDDEN_GREY = 128


def draw_reconstructions(
    model: SimMIM, dataset: PretrainDataset, device: torch.device, num_rows: int = 8
) -> Image.Image:
    """A row for each of `num_rows` samples spread over the data set, of fewer where it is small."""
    was_training = model.training
    model.eval()
    samples = [dataset[0, index] for index in spread(num_rows, len(dataset))]
    image, mask = (torch.stack(parts) for parts in zip(*samples, strict=True))
    image, mask = image.to(device), mask.to(device)
    normalized = dataset.normalize(image)
    reconstruction = dataset.normalize.undo(model.reconstruct(normalized, mask))
    model.train(was_training)
    image = to_uint8(image)
    hidden = resize_mask(mask, image.shape[-2:])
    masked = torch.where(hidden, torch.full_like(image, _HIDDEN_GREY), image)
    return picture_grid(dict(zip(COLUMNS, (image, masked, reconstruction), strict=True)))


def main() -> None:
    """Read a checkpoint, draw held-out samples where the data set has them, write the picture."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    if is_finetuning(cfg):
        raise ValueError(f"{arguments.cfg} is for fine-tuning, expected a recipe of pre-training")
    device = choose_device(cfg.DEVICE)
    path = Path(cfg.MODEL.RESUME) if cfg.MODEL.RESUME else None
    if path is None:
        path, _ = newest_checkpoint(run_folder(cfg), warn=print)
    if path is None:
        raise ValueError(f"no usable checkpoint in {run_folder(cfg)}: give --resume CKPT")
    model = load_simmim(path, cfg)
    dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size, train=False)
    picture = draw_reconstructions(model.to(device), dataset, device, arguments.rows)
    save_picture(picture, arguments.picture)
    rows = f"{' | '.join(COLUMNS)}, {min(arguments.rows, len(dataset))} rows"
    print(f"wrote {arguments.picture} ({rows}) from {path}")


if __name__ == "__main__":
    run_program(main)
