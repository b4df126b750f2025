"""Draw masks of a recipe, and measure how far hidden pixels are from visible ones (AvgDist).

python -m tools.masks --cfg FILE [--ratios 0.2 0.4 0.6 0.8] [--opts DATA.MASK block ...]

The picture has a row for each ratio, hidden cells in black. docs/masks.md describes the masks and
AvgDist.
"""

import argparse

from utils.config.arguments import (
    make_parser,
    positive_integer,
    positive_number,
    read_config,
    read_early,
)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.masks", __doc__, ("--cfg", "--opts"))
    parser.add_argument(
        "--ratios", type=positive_number, nargs="+", metavar="R", help="[DATA.MASK_RATIO]"
    )
    parser.add_argument(
        "--draws", type=positive_integer, default=3000, metavar="N", help="of each ratio [3000]"
    )
    parser.add_argument("--picture", default="masks.png", metavar="FILE", help="[masks.png]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws [0]")
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.layers import to_2tuple
from torch import Tensor

from data import build_mask
from data.drawing import picture_grid, save_picture
from data.mask_distance import average_distance
from models.build import build_encoder
from utils.config import is_finetuning, with_options
from utils.messages import shown
from utils.processes.exit_status import run_program
from utils.randomness import SAMPLE_STREAM, seeded

_COLUMNS = 8  # masks of each ratio in the picture
_VISIBLE_GREY = 224


def main() -> None:
    """Draw and measure masks of every ratio, print the table, write the picture."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    if is_finetuning(cfg):
        raise ValueError(f"{arguments.cfg} is for fine-tuning, expected a recipe of pre-training")
    cfg = with_options(cfg, ["SEED", arguments.seed])
    require_new(arguments.picture)
    with torch.device("meta"):  # its weights need no memory
        patch_size = build_encoder(cfg).patch_size
    ratios = arguments.ratios or [cfg.DATA.MASK_RATIO]
    varied = [with_options(cfg, ["DATA.MASK_RATIO", ratio]) for ratio in ratios]
    masks = [build_mask(one, patch_size) for one in varied]  # errors come before the measurement
    size, cell = cfg.DATA.IMG_SIZE, cfg.DATA.MASK_PATCH_SIZE
    num_cells = math.prod(to_2tuple(size)) // cell**2
    print(
        f"mask {cfg.DATA.MASK}, DATA.IMG_SIZE {shown(size)}, cells of {cell} and patches of "
        f"{patch_size} pixels, {arguments.draws} draws"
    )
    print("ratio   hidden cells   true ratio   AvgDist (patch centres)   AvgDist (pixels)")
    rows: list[Tensor] = []
    for ratio, mask in zip(ratios, masks, strict=True):
        with seeded(SAMPLE_STREAM, cfg.SEED):
            share, centres, pixels = measure(mask, patch_size, arguments.draws)
        with seeded(SAMPLE_STREAM, cfg.SEED):
            rows.append(torch.stack([mask() for _ in range(_COLUMNS)]))
        hidden = f"{share * num_cells:.6g} of {num_cells}"
        print(f"{ratio:5g}{hidden:>15}{share:13.3f}{centres:26.2f}{pixels:19.2f}", flush=True)
    save_picture(draw(rows, [f"{ratio:g}" for ratio in ratios]), arguments.picture)
    print(f"wrote {arguments.picture} ({_COLUMNS} masks of each ratio)")


def require_new(picture: str) -> None:
    """ValueError where the picture exists, or its folder does not."""
    path = Path(picture)
    if path.exists():
        raise ValueError(f"{picture} exists already: give another name with --picture FILE")
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--picture is {picture}, expected the name of a picture, such as out.png")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of --picture {picture} does not exist")


def measure(mask: Callable[[], Tensor], patch_size: int, draws: int) -> np.ndarray:
    """Means over masks: share of hidden patches, and both numbers of `average_distance`."""
    total = np.zeros(3)
    for _ in range(draws):
        drawn = mask()
        total += (drawn.float().mean().item(), *average_distance(drawn, patch_size))
    return total / draws


def draw(masks: list[Tensor], captions: list[str]) -> Image.Image:
    """A picture of masks, each (columns, h, w): one row for each entry, under its caption."""
    visible = (~torch.stack(masks)).to(torch.uint8) * _VISIBLE_GREY  # (rows, columns, h, w)
    columns = {f"{index + 1}": visible[:, [index]] for index in range(visible.shape[1])}
    return picture_grid(columns, side=96, captions=captions)


if __name__ == "__main__":
    run_program(main)
