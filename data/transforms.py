"""Transforms of a picture to a tensor, and of a batch to the network's input."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from timm.layers import to_2tuple
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional
from torchvision.transforms.functional import pil_to_tensor
from torchvision.transforms.v2.functional import resize_image

from data.pictures import RGB, Picture, Reduced
from utils.messages import short, shown

Size = int | tuple[int, int]  # a side, or height and width
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DIVISORS = (8, 4, 2)  # of a JPEG's sides, what libjpeg decodes fast
_MARGIN = 3.0  # pixels of a reduced crop per pixel of the result; fewer would blur it


def _posterize(picture: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """timm's posterize, with 0 bits as before Pillow 13, which refuses them: black."""
    if bits_to_keep < 1:
        return Image.new(picture.mode, picture.size)
    posterized: Image.Image = auto_augment.posterize(picture, bits_to_keep)
    return posterized


# RandAugment keeps 0 bits where its magnitude is at the upper limit.
for _name in [name for name in auto_augment.NAME_TO_OP if name.startswith("Posterize")]:
    auto_augment.NAME_TO_OP[_name] = _posterize


class CropAndFlip:
    """Random resized crop and horizontal flip: picture -> tensor (C, H, W), uint8 for RGB."""

    def __init__(self, image_size: Size, scale: Sequence[float], interpolation: str) -> None:
        height, width = to_2tuple(image_size)
        self.size, self.scale = [height, width], list(scale)
        self.ratio = list(_ratio(height, width))
        self.mode = transforms.InterpolationMode(interpolation)
        self.pil_mode = Image.Resampling[interpolation.upper()]

    def __call__(self, picture: Picture) -> Tensor:
        """Crop and flip with the same random numbers as torchvision's two transforms."""
        whole = picture
        if isinstance(picture, Reduced):  # its size is all that the random numbers depend on
            whole = torch.empty(1, 1, 1).expand(RGB, picture.height, picture.width)
        crop = transforms.RandomResizedCrop.get_params(whole, self.scale, self.ratio)
        mirrored = bool(torch.rand(1) < 0.5)
        if isinstance(picture, Reduced):
            cropped = self._part_of(picture, *crop)
        elif not isinstance(picture, Tensor):
            cropped = pil_to_tensor(functional.resized_crop(picture, *crop, self.size, self.mode))
        else:  # on uint8, several times as fast as PIL
            top, left, height, width = crop
            part = picture[:, top : top + height, left : left + width]
            cropped = resize_image(part, self.size, self.mode)
        return cropped.flip(-1) if mirrored else cropped

    def reduction(self, height: int, width: int) -> int:
        """By what a picture's sides may be divided (1, 2, 4 or 8), so that crops stay the same."""
        narrow, wide = self.ratio
        area = self.scale[0] * height * width
        smallest = min(height, math.sqrt(area / wide)), min(width, math.sqrt(area * narrow))
        factor = min(side / wanted for side, wanted in zip(smallest, self.size, strict=True))
        return next((divisor for divisor in _DIVISORS if divisor * _MARGIN <= factor), 1)

    def _part_of(self, picture: Reduced, top: int, left: int, height: int, width: int) -> Tensor:
        """The crop of a reduced picture: PIL resizes from a box whose sides are no whole pixels."""
        divisor, size = picture.divisor, (self.size[1], self.size[0])
        x, y, end = left // divisor, top // divisor, (left + width, top + height)
        # Without what lies around it, which the resizing would mix in at the border.
        part = picture.pixels.crop((x, y, -(-end[0] // divisor), -(-end[1] // divisor)))
        box = (left / divisor - x, top / divisor - y, end[0] / divisor - x, end[1] / divisor - y)
        return pil_to_tensor(part.resize(size, self.pil_mode, box=box))


def pretrain_transform(image_size: Size) -> CropAndFlip:
    """The augmentation of pre-training."""
    return CropAndFlip(image_size, (0.67, 1.0), "bilinear")


def _ratio(height: int, width: int) -> tuple[float, float]:
    """Range of width / height of a crop: 3/4 to 4/3 of the image's."""
    shape = width / height
    return 3 / 4 * shape, 4 / 3 * shape


def _to_tensor(picture: Picture) -> Tensor:
    return picture if isinstance(picture, Tensor) else pil_to_tensor(picture)


class TrainTransform:
    """Apply `for_rgb` to PIL images and `for_others` to tensors."""

    def __init__(
        self,
        for_rgb: Callable[[Image.Image], Tensor],
        for_others: Callable[[Picture], Tensor],
        changes_colours: bool,
    ) -> None:
        self.for_rgb, self.for_others = for_rgb, for_others
        self.changes_colours = changes_colours

    def __call__(self, picture: Picture) -> Tensor:
        """Picture -> tensor; ValueError for a tensor if `changes_colours`."""
        if isinstance(picture, Image.Image):
            return torch.as_tensor(self.for_rgb(picture))
        if self.changes_colours:
            raise ValueError(
                "AUG.COLOR_JITTER and AUG.AUTO_AUGMENT are for RGB pictures: switch them off for "
                "others (--opts AUG.COLOR_JITTER 0.0 AUG.AUTO_AUGMENT none)"
            )
        return self.for_others(picture)


def train_transform(
    image_size: Size,
    interpolation: str,
    crop_scale: Sequence[float],
    color_jitter: float,
    auto_augment: str,
    mean: Sequence[float] = IMAGENET_MEAN,
) -> TrainTransform:
    """timm's augmentation for supervised training: picture -> tensor (C, H, W).

    RGB pictures become uint8; others are only cropped and flipped, so colour jitter and
    AutoAugment must be off for them. `BatchAugmentation` does random erasing and Mixup, on
    normalized batches. ValueError where timm does not understand `auto_augment`.
    """
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"AUG.CROP_SCALE is {list(crop_scale)}, expected [from, to] within 0..1")
    height, width = to_2tuple(image_size)
    colours = color_jitter > 0 or auto_augment not in ("", "none")
    try:
        augment = create_transform(
            (height, width),
            is_training=True,
            use_prefetcher=True,  # returns uint8
            scale=tuple(crop_scale),
            ratio=_ratio(height, width),
            color_jitter=color_jitter or None,
            auto_augment=auto_augment if auto_augment not in ("", "none") else None,
            interpolation=interpolation,
            mean=tuple(mean),
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"AUG.AUTO_AUGMENT is {shown(auto_augment)}, which timm does not know "
            f"({short(str(error))}); "
            "for example rand-m9-mstd0.5-inc1, or none"
        ) from None
    return TrainTransform(augment, CropAndFlip(image_size, crop_scale, interpolation), colours)


def eval_transform(image_size: Size, interpolation: str, crop: bool) -> transforms.Compose:
    """Picture -> tensor (C, H, W) without randomness, uint8 for RGB pictures.

    With `crop`, the picture is resized to cover 256/224 of the image size, then cropped at the
    centre; without, the whole picture is resized to the image size.
    """
    mode = transforms.InterpolationMode(interpolation)
    sides = to_2tuple(image_size)
    resize: list[Callable[[Picture], Picture]] = [transforms.Resize(sides, mode)]
    if crop:
        height, width = (int(256 / 224 * side) for side in sides)
        cover = functools.partial(_cover, height=height, width=width, mode=mode)
        resize = [cover, transforms.CenterCrop(sides)]
    return transforms.Compose([*resize, _to_tensor])


_LONGEST = 64  # times the result's length


def _cover(
    picture: Picture, height: int, width: int, mode: transforms.InterpolationMode
) -> Picture:
    """Resize a picture, with its aspect ratio kept, so that it just covers height x width.

    Of a picture many times as long as the result only the middle part is resized: the whole would
    take gigabytes, and the centre crop keeps none of it.
    """
    _, old_height, old_width = functional.get_dimensions(picture)
    most_height = max(1, old_width * height * _LONGEST // width)
    most_width = max(1, old_height * width * _LONGEST // height)
    if old_height > most_height or old_width > most_width:
        old_height, old_width = min(old_height, most_height), min(old_width, most_width)
        picture = functional.center_crop(picture, [old_height, old_width])
    if old_height * width <= old_width * height:
        size = [height, int(height * old_width / old_height)]
    else:
        size = [int(width * old_height / old_width), width]
    covering: Picture = functional.resize(picture, size, mode)
    return covering


class BatchAugmentation:
    """timm's random erasing, then Mixup or CutMix, on a normalized batch.

    Without `mixup`, labels stay class indices.
    """

    def __init__(self, erase: RandomErasing, mixup: Mixup | None) -> None:
        self.erase, self.mixup = erase, mixup

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """float (B, C, H, W) and labels (B,) -> images and targets (B,) or (B, num_classes)."""
        image = self.erase(image)
        if self.mixup is None:
            return image, label
        mixed: tuple[Tensor, Tensor] = self.mixup(image, label)
        return mixed


class Normalizer:
    """Convert images to the network's input, (x - mean) / std per channel, and back.

    `mean` and `std` refer to values from 0 to 1; one number applies to all channels.
    ValueError unless both have one or `channels` numbers and `std` is positive.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels: int = RGB,
    ) -> None:
        for key, values in (("DATA.MEAN", mean), ("DATA.STD", std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"{key} is {shown(list(values))}, expected one number, or one for each of the "
                    f"{channels} channel(s) that the encoder takes (IN_CHANS)"
                )
        if min(std) <= 0:
            raise ValueError(f"DATA.STD is {shown(list(std))}, expected positive numbers")
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 or float (B, C, H, W) -> float32 on the same device."""
        self._move_to(image.device)
        pixels = image.float() / 255 if image.dtype == torch.uint8 else image
        return (pixels - self.mean) / self.std

    def undo(self, image: Tensor) -> Tensor:
        """Float (B, C, H, W) -> uint8, rounded and clamped, of numbers from 0 to 1."""
        return to_uint8(self.numbers(image))

    def numbers(self, image: Tensor) -> Tensor:
        """Float (B, C, H, W) -> float32, the pictures' numbers: from 0 to 1, or of any unit."""
        self._move_to(image.device)
        return image.float() * self.std + self.mean

    def __getstate__(self) -> dict[str, Tensor]:
        """Loader workers, which get a copy, have no GPU."""
        return {"mean": self.mean.cpu(), "std": self.std.cpu()}

    def _move_to(self, device: torch.device) -> None:
        # Only once: a copy to the device in every step would make the host wait.
        if self.mean.device != device:
            self.mean, self.std = self.mean.to(device), self.std.to(device)


def to_uint8(image: Tensor) -> Tensor:
    """Scale values of 0..1 to 0..255, rounded and clamped; return uint8 unchanged."""
    if image.dtype == torch.uint8:
        return image
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
