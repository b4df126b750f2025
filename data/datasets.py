"""Data sets: index -> (RGB picture, label), and the table that names them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torchvision
from PIL import Image, UnidentifiedImageError

from data.shapes import CLASSES, draw_shape
from data.transforms import to_rgb
from utils.distributed import barrier, rank

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
NO_LABEL = -1


class PictureSet(Protocol):
    """What pre-training asks of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """RGB picture and label (NO_LABEL where there is none)."""


def read_picture(path: str) -> Image.Image:
    """A file as an RGB picture; ValueError names one that is none."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            image.load()  # here, where the file is open and an error names it
            return to_rgb(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


class ImageFolder:
    """All pictures below a folder, at any depth, in sorted order; labels are not read."""

    def __init__(self, root: str) -> None:
        self.root = root
        # One array instead of a million strings: worker processes then share its memory.
        self.names = np.array(sorted(find_pictures(root)), dtype=np.bytes_)
        if not len(self.names):
            raise ValueError(
                f"DATA.DATA_PATH {root} holds no picture, at any depth "
                f"(looked for {', '.join(IMAGE_SUFFIXES)})"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """A picture and NO_LABEL."""
        return read_picture(os.path.join(self.root, os.fsdecode(self.names[index]))), NO_LABEL


class Cifar10:
    """CIFAR-10 in torchvision's format, downloaded to `root` unless it is there."""

    def __init__(self, root: str, train: bool) -> None:
        require_path(root)
        try:
            if rank() == 0:
                torchvision.datasets.CIFAR10(root, train=train, download=True)
            barrier()  # the other processes wait for the download
            self.pictures = torchvision.datasets.CIFAR10(root, train=train)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"DATA.DATA_PATH {root} holds no CIFAR-10 (looked for cifar-10-batches-py), "
                f"and it could not be downloaded there: {reason}"
            ) from None
        self.classes: list[str] = self.pictures.classes
        self.labels: list[int] = self.pictures.targets

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """A 32 x 32 picture and its class."""
        picture, label = self.pictures[index]
        return picture, label


class Shapes:
    """Ten classes of shapes, drawn on the fly from the index alone (data/shapes.py)."""

    classes = list(CLASSES)

    def __init__(self, length: int, image_size: int, train: bool) -> None:
        self.length = length
        self.size = image_size + image_size // 4  # room for crops
        self.stream = 0 if train else 1
        self.labels = [index % len(CLASSES) for index in range(length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """A square picture, a quarter larger than the image size, and its class."""
        return draw_shape(index, self.size, self.stream)


def require_path(root: str) -> None:
    """ValueError where no data path is given."""
    if not root:
        raise ValueError("DATA.DATA_PATH is empty, expected a folder of images (--data-path DIR)")


def find_pictures(root: str) -> list[bytes]:
    """Paths of all pictures at any depth below `root`, relative to it, in no order."""
    require_path(root)
    if not Path(root).is_dir():
        raise ValueError(f"DATA.DATA_PATH {root} is not a folder, expected one that holds images")
    names = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        names += [
            os.fsencode(os.path.normpath(os.path.join(relative, name)))
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES)
        ]
    return names


# Name -> (data path, image size, number of shapes, train) -> data set
DATASETS: dict[str, Callable[[str, int, int, bool], Any]] = {
    "imagenet": lambda path, image_size, num_shapes, train: ImageFolder(path),
    "cifar10": lambda path, image_size, num_shapes, train: Cifar10(path, train),
    "shapes": lambda path, image_size, num_shapes, train: Shapes(num_shapes, image_size, train),
}
