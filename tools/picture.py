"""Pictures that the tools draw."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP = 6
_HEADER = 26


def picture_grid(columns: dict[str, Tensor], side: int = 144) -> Image.Image:
    """Columns of uint8 images (B, 3, H, W) side by side under their names, about `side` px each."""
    num_rows, *_, size = next(iter(columns.values())).shape
    cell = size * max(1, round(side / size))
    width = len(columns) * (cell + _GAP) + _GAP
    grid = Image.new("RGB", (width, num_rows * (cell + _GAP) + _GAP + _HEADER), "white")
    draw = ImageDraw.Draw(grid)
    for column, (name, images) in enumerate(columns.items()):
        left = _GAP + column * (cell + _GAP)
        draw.text(
            (left + cell / 2, _HEADER / 2 + 2), name, "black", ImageFont.load_default(17), "mm"
        )
        for row, image in enumerate(images.cpu().permute(0, 2, 3, 1).numpy()):
            enlarged = Image.fromarray(np.ascontiguousarray(image)).resize(
                (cell, cell), Image.Resampling.NEAREST
            )
            grid.paste(enlarged, (left, _HEADER + _GAP + row * (cell + _GAP)))
    return grid


def spread(number: int, length: int) -> list[int]:
    """Indices of `number` samples spread over a data set of `length`.

    One step aside per sample, so that the classes of an ordered data set take turns.
    """
    return [(index * (length // number) + index) % length for index in range(number)]


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a picture; ValueError where that is impossible."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"picture {path} cannot be written: {error}") from None
