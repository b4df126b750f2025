"""Data sets of both stages: samples by (epoch, index), which a loader collects into batches."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from data.pictures import Picture
from data.samplers import Key
from data.transforms import Normalizer
from data.unreadable import EvalPictures, ReadablePictures
from utils.randomness import SAMPLE_STREAM, seeded


def collate(samples: list[tuple[Any, ...]]) -> list[Tensor]:
    """Stack the parts of samples; ValueError where only some images are of real numbers.

    torch would convert 8-bit images to the others' type, but not their range. Black images, which
    stand for unreadable ones, are the same in both.
    """
    if len({image.dtype for image, *_ in samples}) > 1:
        kinds = {image.dtype for image, *_ in samples if image.any()}
        if len(kinds) > 1:
            raise ValueError(
                "a batch has pictures of 8-bit RGB and pictures of real numbers, whose ranges "
                "differ: keep them in folders of their own"
            )
        samples = [(image.to(*kinds), *rest) for image, *rest in samples]
    batch: list[Tensor] = default_collate(samples)
    return batch


class PretrainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples of image and mask, both determined by (seed, epoch, index) alone.

    `normalize` converts a batch of images to the network's input.
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
    """Samples of image and label; (seed, epoch, index) determines the random augmentation."""

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
    """Samples without randomness; an unreadable picture is black and has label -1 - label.

    `order[i]` is the index in `classes` of class i of `pictures`.
    """

    pictures: EvalPictures

    def __init__(
        self,
        pictures: EvalPictures,
        transform: Callable[[Picture], Tensor],
        classes: list[str],
        normalize: Normalizer,
        order: Sequence[int],
    ) -> None:
        super().__init__(pictures, transform, classes, normalize)
        self.order = order

    @property
    def num_moved(self) -> int:
        """Number of classes whose index in `classes` differs from their index in `pictures`."""
        return sum(index != own for own, index in enumerate(self.order))

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Image (C, H, W) and label of (epoch, index); the epoch has no effect."""
        picture, own, readable = self.pictures.read_or_blank(key[1])
        label = self.order[own]
        return self.transform(picture), label if readable else -1 - label
