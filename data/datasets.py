"""Data sets of both stages: what a loader collects into batches, from (epoch, index)."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils.data import Dataset

from data.pictures import Picture
from data.samplers import Key
from data.transforms import Normalizer
from data.unreadable import EvalPictures, ReadablePictures
from utils.randomness import SAMPLE_STREAM, seeded


class PretrainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image and mask of a sample, both a function of (seed, epoch, index) alone.

    `normalize` makes of a batch of images what the network takes.
    """

    def __init__(
        self,
        pictures: ReadablePictures,
        transform: Callable[[Picture], Tensor],
        mask: Callable[[], Tensor],
        normalize: Normalizer,
    ) -> None:
        self.pictures, self.transform, self.mask = pictures, transform, mask
        self.normalize = normalize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) and bool mask (H/patch, W/patch) of (epoch, index)."""
        picture, _ = self.pictures.read(*key)
        with seeded(SAMPLE_STREAM, self.pictures.seed, *key):
            return self.transform(picture), self.mask()


class LabelledDataset(Dataset[tuple[Tensor, int]]):
    """Image and label; what the transform leaves to chance follows from (seed, epoch, index)."""

    def __init__(
        self,
        pictures: ReadablePictures,
        transform: Callable[[Picture], Tensor],
        classes: list[str],
        normalize: Normalizer,
    ) -> None:
        self.pictures, self.transform = pictures, transform
        self.classes, self.normalize = classes, normalize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Image (C, H, W) and label of (epoch, index)."""
        picture, label = self.pictures.read(*key)
        with seeded(SAMPLE_STREAM, self.pictures.seed, *key):
            return self.transform(picture), label


class EvalDataset(LabelledDataset):
    """The same without chance: a picture that cannot be read is black and has label -1 - label.

    `order` holds the index in `classes` of each of the pictures' own classes.
    """

    def __init__(
        self,
        pictures: EvalPictures,
        transform: Callable[[Picture], Tensor],
        classes: list[str],
        normalize: Normalizer,
        order: Sequence[int],
    ) -> None:
        super().__init__(pictures, transform, classes, normalize)
        self.readable, self.order = pictures, order

    @property
    def num_moved(self) -> int:
        """How many classes have another index than among the pictures' own."""
        return sum(index != own for own, index in enumerate(self.order))

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Image (C, H, W) and label of (0, index)."""
        picture, own, readable = self.readable.read_or_blank(key[1])
        label = self.order[own]
        return self.transform(picture), label if readable else -1 - label
