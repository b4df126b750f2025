"""A data set with as many names as ImageNet's, of few files: hard links take no room."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1_000
_MOST_LINKS = 65_000  # to one file of ext4


def draw_sources(folder: Path, number: int = 24) -> list[Path]:
    """Small JPEG files, each of its own colours."""
    folder.mkdir(parents=True)
    paths = [folder / f"{index}.jpg" for index in range(number)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def make_many_names(folder: Path, sources: Sequence[Path], classes: int, total: int) -> None:
    """Fill `folder` with class folders, as ImageNet names them, of `total` links to `sources`.

    Classes differ by at most one picture. ValueError where a file would get more links than file
    systems allow.
    """
    if total > len(sources) * (_MOST_LINKS - 1):
        raise ValueError(f"{total} names need more than {len(sources)} files to link to")
    for label in range(classes):
        name = f"n{1_440_764 + 12 * label:08}"
        directory = folder / name
        directory.mkdir(parents=True)
        for index in range(label, total, classes):
            os.link(sources[index % len(sources)], f"{directory}/{name}_{index}.JPEG")
