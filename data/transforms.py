"""From a picture to a uint8 tensor, and from there to what the network sees."""

import functools

import torch
from PIL import Image
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
