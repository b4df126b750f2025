"""Draw network inputs and reconstructions for visual inspection."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from data.datasets import LabelledDataset, PretrainDataset
from data.pictures import RGB
from data.transforms import BatchAugmentation, to_uint8

COLUMNS = ("original", "masked", "reconstruction")
MIXED_ROWS = 8  # even, since Mixup pairs images
_HIDDEN_GREY = 128
_GAP = 6
_HEADER = 26


def picture_grid(
    columns: dict[str, Tensor], side: int = 144, captions: Sequence[str] = ()
) -> Image.Image:
    """Draw columns of images (B, C, H, W) under their names, each image about `side` px large.

    uint8, or floats from 0 to 1. The first three channels are drawn; of fewer, only the first.
    `captions` stand before the rows.
    """
    num_rows, _, *size = next(iter(columns.values())).shape
    height, width = (length * max(1, round(side / max(size))) for length in size)
    font = ImageFont.load_default(17)
    widest = math.ceil(max(map(font.getlength, columns)))
    column_width = max(width, widest + 2 * _GAP)  # captions may be wider than images
    margin = math.ceil(max(map(font.getlength, captions))) + _GAP if captions else 0
    total = margin + len(columns) * (column_width + _GAP) + _GAP
    grid = Image.new("RGB", (total, num_rows * (height + _GAP) + _GAP + _HEADER), "white")
    draw = ImageDraw.Draw(grid)
    for row, caption in enumerate(captions):
        centre = _HEADER + _GAP + row * (height + _GAP) + height // 2
        draw.text((_GAP + margin // 2, centre), caption, "black", font, "mm")
    for column, (name, images) in enumerate(columns.items()):
        middle = margin + _GAP + column * (column_width + _GAP) + column_width // 2
        draw.text((middle, _HEADER / 2 + 2), name, "black", font, "mm")
        left = middle - width // 2
        for row, image in enumerate(_as_rgb(images.cpu()).permute(0, 2, 3, 1).numpy()):
            enlarged = Image.fromarray(np.ascontiguousarray(image)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            grid.paste(enlarged, (left, _HEADER + _GAP + row * (height + _GAP)))
    return grid


def _as_rgb(images: Tensor) -> Tensor:
    """(B, C, H, W) -> uint8 (B, 3, H, W)."""
    images = to_uint8(images)
    return images[:, :3] if images.shape[1] >= RGB else images[:, :1].expand(-1, 3, -1, -1)


def spread(number: int, length: int) -> list[int]:
    """Indices of `number` different samples spread over `length`; all samples if there are fewer.

    The step exceeds length // number, so that the classes of an ordered data set alternate.
    """
    number = min(number, length)
    step = length // number + 1
    while math.gcd(step, length) > 1:
        step += 1
    return [index * step % length for index in range(number)]


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a picture; ValueError where `path` cannot be written."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"picture {path} cannot be written: {error}") from None


def draw_reconstructions(
    model: nn.Module, dataset: PretrainDataset, device: torch.device, num_rows: int = 8
) -> Image.Image:
    """Draw `num_rows` samples spread over the data set, one per row; all samples if fewer."""
    was_training = model.training
    model.eval()
    samples = [dataset[0, index] for index in spread(num_rows, len(dataset))]
    image, mask = (torch.stack(parts) for parts in zip(*samples, strict=True))
    image, mask = image.to(device), mask.to(device)
    normalized = dataset.normalize(image)
    reconstruct: Any = model.reconstruct
    reconstruction = dataset.normalize.numbers(reconstruct(normalized, mask))
    model.train(was_training)
    original, reconstruction = visible(image, reconstruction)
    hidden = F.interpolate(mask.unsqueeze(1).float(), image.shape[-2:]) > 0
    masked = torch.where(hidden, torch.full_like(original, _HIDDEN_GREY), original)
    return picture_grid(dict(zip(COLUMNS, (original, masked, reconstruction), strict=True)))


def visible(image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Convert images (B, C, H, W) and what a network made of them to uint8, in the same way.

    8-bit RGB stays. Of real numbers each image's own range, without its lowest and highest percent,
    becomes 0 to 255: their unit and offset may be any.
    """
    if image.dtype == torch.uint8:
        return image, to_uint8(other)
    drawn = image[:, : RGB if image.shape[1] >= RGB else 1].flatten(1)
    limits = np.percentile(drawn.cpu().numpy(), (1, 99), axis=1, keepdims=True)  # (2, B, 1)
    low, high = torch.from_numpy(limits).to(image)[..., None, None]  # each (B, 1, 1, 1)
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    stretched, likewise = (to_uint8((numbers - low) / span) for numbers in (image, other))
    return stretched, likewise


def draw_augmentation(
    dataset: LabelledDataset, augment: BatchAugmentation, device: torch.device
) -> Image.Image:
    """Draw samples spread over the data set after sample augmentation and batch augmentation.

    A data set with fewer samples than rows repeats them with the augmentation of later epochs.
    """
    indices = spread(MIXED_ROWS, len(dataset))
    rows = [divmod(row, len(indices)) for row in range(MIXED_ROWS)]
    samples = [dataset[epoch, indices[place]] for epoch, place in rows]
    image = torch.stack([image for image, _ in samples])
    label = torch.tensor([label for _, label in samples])
    normalize = dataset.normalize
    seen = normalize.numbers(augment(normalize(image.to(device)), label.to(device))[0])
    image, seen = visible(image, seen.cpu())
    return picture_grid({"augmented": image, "mixed and erased": seen})
