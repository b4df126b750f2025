"""Find the colours that the target color_clusters tells apart, by k-means on training pictures.

python -m tools.color_clusters --cfg FILE [--data-path DIR] --codebook FILE

MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER is the number of colours. The pixels are those that the target
sees: of training crops, shrunk by MODEL.SIMMIM.TARGET_SHRINK.
"""

import argparse
from pathlib import Path

from utils.config.arguments import make_parser, positive_integer, read_config, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.color_clusters", __doc__, ("--cfg", "--opts", "--data-path"))
    parser.add_argument(
        "--codebook", type=Path, required=True, metavar="FILE", help="write it here (.safetensors)"
    )
    parser.add_argument(
        "--pictures", type=positive_integer, default=2000, metavar="N", help="to look at [2000]"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    arguments = parser.parse_args()
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"--seed is {arguments.seed}, expected 0 to 2^32 - 1")
    return arguments


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import numpy as np
import torch
from safetensors.numpy import save
from torch.nn import functional as F

from data import build_pretrain_dataset
from data.datasets import PretrainDataset
from data.drawing import spread
from logger import progress_bar
from models.color_targets import CENTRES
from utils.files import write_whole
from utils.processes.exit_status import run_program

_PIXELS = 1000  # of a picture, at most


def main() -> None:
    """Read pixels of pictures spread over the data set, fit the centres, write them."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise ValueError(
            "tools.color_clusters needs scikit-learn, which is not installed: "
            "pip install -r requirements-study.txt"
        ) from None
    folder = arguments.codebook.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"--codebook {arguments.codebook}: there is no folder {folder}")
    if arguments.codebook.exists():
        raise ValueError(f"--codebook {arguments.codebook} exists already: give another name")
    dataset = build_pretrain_dataset(cfg, patch_size=cfg.DATA.MASK_PATCH_SIZE)
    indices = spread(arguments.pictures, len(dataset))
    pixels = read_pixels(dataset, indices, cfg.MODEL.SIMMIM.TARGET_SHRINK, arguments.seed)
    different = len(np.unique(pixels, axis=0))
    number = cfg.MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER
    if different < number:
        raise ValueError(
            f"{len(indices)} pictures have {different} different colours among the pixels looked "
            f"at, fewer than MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER {number}: give fewer, or more "
            "--pictures"
        )
    clusters = MiniBatchKMeans(number, batch_size=8192, n_init=1, random_state=arguments.seed).fit(
        pixels
    )
    centres = clusters.cluster_centers_.astype(np.float32).clip(0, 1)
    content = save({CENTRES: centres})
    write_whole(arguments.codebook, lambda file: file.write(content), flush=False)
    distance = np.sqrt(clusters.inertia_ / len(pixels))
    print(
        f"wrote {arguments.codebook}: {len(centres)} colours of {len(pixels)} pixels in "
        f"{len(indices)} pictures, root mean square distance {distance:.4f} (colours from 0 to 1)"
    )


def read_pixels(dataset: PretrainDataset, indices: list[int], shrink: int, seed: int) -> np.ndarray:
    """Colours from 0 to 1 of pixels of training crops that are shrunk, float32 (N, 3).

    ValueError for pictures that are not of 8-bit RGB.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in progress_bar(indices, "pictures", rank=0, total=len(indices)):
        image, _ = dataset[0, index]
        if image.dtype != torch.uint8 or len(image) != 3:
            raise ValueError(
                f"{dataset.pictures.name(index)} is {image.dtype} with {len(image)} channel(s), "
                "colours are of 8-bit RGB pictures"
            )
        colors = F.avg_pool2d(image.float() / 255, shrink).flatten(1).T  # (pixels, 3)
        found.append(colors[torch.randperm(len(colors), generator=generator)[:_PIXELS]])
    return torch.cat(found).numpy()


if __name__ == "__main__":
    run_program(main)
