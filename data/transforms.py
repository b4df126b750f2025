"""From a picture to a uint8 tensor, and from there to what the network sees."""

import functools
from collections.abc import Sequence

import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def pretrain_transform(image_size: int) -> transforms.Compose:
    """Random resized crop and flip: RGB picture -> uint8 tensor (3, image_size, image_size)."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                image_size,
                scale=(0.67, 1.0),
                ratio=(3 / 4, 4 / 3),
                interpolation=transforms.InterpolationMode.BILINEAR,
            ),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def train_transform(
    image_size: int,
    interpolation: str,
    crop_scale: Sequence[float],
    color_jitter: float,
    auto_augment: str,
) -> transforms.Compose:
    """timm's augmentation for supervised training: RGB picture -> uint8 tensor (3, size, size).

    What timm does to a normalized batch, random erasing and Mixup, is `BatchAugmentation`'s.
    ValueError where timm does not understand `auto_augment`.
    """
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"AUG.CROP_SCALE is {list(crop_scale)}, expected [from, to] within 0..1")
    try:
        augment = create_transform(
            image_size,
            is_training=True,
            use_prefetcher=True,  # ends in uint8
            scale=tuple(crop_scale),
            color_jitter=color_jitter or None,
            auto_augment=auto_augment if auto_augment not in ("", "none") else None,
            interpolation=interpolation,
            mean=IMAGENET_MEAN,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"AUG.AUTO_AUGMENT is {auto_augment!r}, which timm does not know ({error}); "
            "for example rand-m9-mstd0.5-inc1, or none"
        ) from None
    return transforms.Compose([augment, torch.as_tensor])


def eval_transform(image_size: int, interpolation: str, crop: bool) -> transforms.Compose:
    """RGB picture -> uint8 tensor (3, image_size, image_size), without chance.

    With `crop` the short side becomes 256/224 of the image size, then the centre is cut out;
    without, the whole picture becomes a square.
    """
    mode = transforms.InterpolationMode(interpolation)
    resize = [transforms.Resize((image_size, image_size), mode)]
    if crop:
        short_side = transforms.Resize(int(256 / 224 * image_size), mode)
        resize = [short_side, transforms.CenterCrop(image_size)]
    return transforms.Compose([*resize, transforms.PILToTensor()])


class BatchAugmentation:
    """timm's random erasing, then Mixup or CutMix, on a normalized batch.

    Without `mixup` labels stay class indices.
    """

    def __init__(self, erase: RandomErasing, mixup: Mixup | None) -> None:
        self.erase, self.mixup = erase, mixup

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """float (B, 3, H, W) and labels (B,) -> images and targets (B,) or (B, num_classes)."""
        image = self.erase(image)
        if self.mixup is None:
            return image, label
        mixed: tuple[Tensor, Tensor] = self.mixup(image, label)
        return mixed


def normalize(image: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 with ImageNet's mean 0 and deviation 1, on the same device."""
    mean, std = _statistics(image.device)
    return (image.float() / 255 - mean) / std


def denormalize(image: Tensor) -> Tensor:
    """Undo `normalize`: float (B, 3, H, W) -> uint8, rounded and clamped."""
    mean, std = _statistics(image.device)
    return ((image.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


@functools.cache  # a copy to the device in every step would make the host wait
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
    return mean, torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB: 16-bit grey is scaled, transparent parts become white."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # PIL's conversion would clip 16 bits at 255
        image = image.convert("I").point(lambda value: value * (1 / 256), "L")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
