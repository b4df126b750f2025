"""Draw what fine-tuning makes of pictures: augmented | mixed and erased.

python -m tools.augmentation --cfg FILE [--data-path DIR] --picture out.png
"""

import argparse

from utils.arguments import make_parser, read_config, read_early


def read_arguments() -> argparse.Namespace:
    """The command line."""
    flags = ("--cfg", "--opts", "--data-path")
    parser = make_parser("-m tools.augmentation", __doc__, flags)
    parser.add_argument(
        "--picture", default="augmentation.png", metavar="FILE", help="[augmentation.png]"
    )
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import torch
from PIL import Image

from data import build_batch_augmentation, build_train_dataset
from data.samples import LabelledDataset
from data.transforms import BatchAugmentation
from tools.picture import picture_grid, save_picture, spread
from utils.program import run_program

_ROWS = 8  # an even number, which Mixup pairs


def draw_augmentation(
    dataset: LabelledDataset, augment: BatchAugmentation, device: torch.device
) -> Image.Image:
    """Samples spread over the data set, after their own augmentation and after the batch's.

    Where it has fewer than there are rows they come again as the next epochs see them.
    """
    indices = spread(_ROWS, len(dataset))
    samples = [dataset[row // len(indices), indices[row % len(indices)]] for row in range(_ROWS)]
    image = torch.stack([image for image, _ in samples])
    label = torch.tensor([label for _, label in samples])
    normalize = dataset.normalize
    seen = normalize.undo(augment(normalize(image.to(device)), label.to(device))[0])
    return picture_grid({"augmented": image, "mixed and erased": seen})


def main() -> None:
    """Read the configuration, draw, write the picture."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    dataset = build_train_dataset(cfg)
    device = torch.device("cpu")
    augment = build_batch_augmentation(cfg, len(dataset.classes), device)
    save_picture(draw_augmentation(dataset, augment, device), arguments.picture)
    print(f"wrote {arguments.picture} (augmented | mixed and erased, {_ROWS} rows)")


if __name__ == "__main__":
    run_program(main)
