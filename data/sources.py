"""Sources of pictures: index -> (picture, label)."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torchvision
from timm.layers import to_2tuple

from data.listing import find_pictures, require_path
from data.pictures import (
    ARRAY_SUFFIX,
    FAST_RGB,
    IMAGE_SUFFIXES,
    NO_LABEL,
    RGB,
    Decoder,
    Picture,
    as_channels,
    read_file,
)
from data.shapes import CLASSES, draw_shape
from data.transforms import Size
from utils.digest import digest_of
from utils.messages import one_line, reason_of, short
from utils.processes.group import barrier, rank

Labels = Sequence[int] | np.ndarray


class PictureSet(Protocol):
    """Pictures by index, as pre-training needs them.

    An optional property `digest` (text) tells other pictures apart by names, order and labels. Sets
    of files also have `content`, which returns a picture's file, and `decode` (data/first_look.py).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """Picture and label (NO_LABEL where there is none)."""

    def name(self, index: int) -> str:
        """The picture's name in messages."""


class LabelledSet(PictureSet, Protocol):
    """Pictures with labels that are known without reading them, as fine-tuning needs them."""

    @property
    def labels(self) -> Labels:
        """One label per picture, an index into `classes`."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""


def digest_of_set(pictures: PictureSet) -> str:
    """The set's `digest`, else one of its length."""
    return getattr(pictures, "digest", None) or digest_of(str(len(pictures)))


def require_several_classes(pictures: LabelledSet, what: str) -> None:
    """ValueError where all pictures have the same label: any classifier would be always right."""
    labels = np.asarray(pictures.labels)
    if len(labels) and (labels == labels[0]).all():
        name = short(pictures.classes[int(labels[0])])
        # The last folders of a path tell more than the first.
        held = " to ".join(short(pictures.name(index)[-80:]) for index in (0, len(labels) - 1))
        raise ValueError(
            f"{what}: all {len(labels)} training pictures are of one class, {name} ({held}), from "
            "which nothing can be learned: expected several classes (of folders: are the classes "
            f"one folder deeper, in {name}?)"
        )


class Selection:
    """A subset of a labelled set, given by indices."""

    def __init__(self, whole: LabelledSet, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, indices
        self.classes = whole.classes
        self.labels = [whole.labels[index] for index in indices]
        self.found = getattr(whole, "found", "")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """A picture and its label."""
        return self.whole[self.indices[index]]

    @property
    def digest(self) -> str:
        """Digest of the whole set and the choice."""
        return digest_of(digest_of_set(self.whole), np.array(self.indices, np.int64))

    def name(self, index: int) -> str:
        """The picture's name in the whole set."""
        return self.whole.name(self.indices[index])


class ImageFolder:
    """All pictures below a folder, at any depth, in sorted order; labels are not read."""

    def __init__(self, root: str, decode: Decoder = FAST_RGB) -> None:
        self.root, self.decode = root, decode
        listing = find_pictures(root)
        self.names, self.found = listing.names, str(listing)
        if not len(self.names):
            raise ValueError(
                f"DATA.DATA_PATH {root} holds no picture, at any depth "
                f"(looked for {', '.join((*IMAGE_SUFFIXES, ARRAY_SUFFIX))})"
                f"{listing.left_out.words()}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """A picture and NO_LABEL."""
        return self.decode(self.content(index), self.name(index)), NO_LABEL

    def content(self, index: int) -> bytes:
        """A picture's file."""
        return read_file(self.path(index))

    @property
    def digest(self) -> str:
        """Digest of the names below the folder."""
        return self.names.digest

    def path(self, index: int) -> str:
        """A picture's path."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def name(self, index: int) -> str:
        """A picture's path, as in messages."""
        return one_line(self.path(index))


class Cifar10:
    """CIFAR-10 in torchvision's format, downloaded to `root` if missing."""

    def __init__(self, root: str, train: bool, channels: int = RGB) -> None:
        require_path(root)
        self.channels = rgb_or_grey(channels, "cifar10")
        try:
            if rank() == 0:
                torchvision.datasets.CIFAR10(root, train=train, download=True)
            barrier()  # the other processes wait for the download
            self.pictures = torchvision.datasets.CIFAR10(root, train=train)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"DATA.DATA_PATH {root} holds no CIFAR-10 (looked for cifar-10-batches-py), "
                f"and it could not be downloaded there: {reason_of(error)}"
            ) from None
        self.classes: list[str] = self.pictures.classes
        self.labels: list[int] = self.pictures.targets

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """A 32 x 32 picture and its class."""
        picture, label = self.pictures[index]
        return as_channels(picture, self.channels), label

    @property
    def digest(self) -> str:
        """Digest of the labels, which only this part of CIFAR-10 has."""
        return digest_of("cifar10", np.array(self.labels, np.int64))

    def name(self, index: int) -> str:
        """The picture's number, as in messages."""
        return f"picture {index} of CIFAR-10"


_LARGEST_SHAPE = 4096  # pixels a side; drawing takes ten float arrays of this size


class Shapes:
    """Ten classes of shapes, drawn on the fly from the index alone (data/shapes.py)."""

    classes = list(CLASSES)

    def __init__(self, length: int, image_size: Size, train: bool, channels: int = RGB) -> None:
        self.length = length
        self.channels = rgb_or_grey(channels, "shapes")
        side = max(to_2tuple(image_size))
        if side > _LARGEST_SHAPE:
            raise ValueError(f"DATA.IMG_SIZE is {side}; shapes are drawn up to {_LARGEST_SHAPE}")
        self.size = side + side // 4  # room for crops
        self.stream = 0 if train else 1
        self.labels = [index % len(CLASSES) for index in range(length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """A square picture, a quarter larger than the image size, and its class."""
        picture, label = draw_shape(index, self.size, self.stream)
        return as_channels(picture, self.channels), label

    @property
    def digest(self) -> str:
        """Digest of number, size and part, from which all shapes follow."""
        return digest_of(f"shapes {self.length} {self.size} {self.stream}")

    def name(self, index: int) -> str:
        """The picture's number, as in messages."""
        return f"shape {index}"


def rgb_or_grey(channels: int, name: str) -> int:
    """Return `channels`; ValueError unless it is 3 (RGB) or 1 (grey), the only choices."""
    if channels not in (1, RGB):
        raise ValueError(f"IN_CHANS is {channels}, but the data set {name} has RGB (3) or grey (1)")
    return channels
