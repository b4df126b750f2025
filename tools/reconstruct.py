"""Draw what a pre-trained model makes of hidden patches: original | masked | reconstruction.

python -m tools.reconstruct --cfg FILE [--resume CKPT] [--data-path DIR] --picture out.png

Without --resume it takes the newest checkpoint of the run that the configuration names.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data import build_pretrain_dataset
from data.build import PretrainDataset
from data.transforms import denormalize, normalize
from models import build_pretrain_model
from models.simmim import SimMIM, upsample_mask
from utils.arguments import make_parser, read_config
from utils.checkpoint import newest_checkpoint, restore_model
from utils.run import choose_device, run_folder, run_program
from utils.safe_load import model_weights, read_checkpoint

COLUMNS = ("original", "masked", "reconstruction")
_HIDDEN_GREY = 128
_GAP = 6
_HEADER = 26


def draw_reconstructions(
    model: SimMIM, dataset: PretrainDataset, device: torch.device, num_rows: int = 8
) -> Image.Image:
    """A picture with one row for each of `num_rows` samples spread over the data set."""
    was_training = model.training
    model.eval()
    # One step aside per row, so that the classes of an ordered data set take turns.
    indices = [(row * (len(dataset) // num_rows) + row) % len(dataset) for row in range(num_rows)]
    samples = [dataset[0, index] for index in indices]
    image, mask = (torch.stack(parts) for parts in zip(*samples, strict=True))
    image, mask = image.to(device), mask.to(device)
    reconstruction = denormalize(model.reconstruct(normalize(image), mask))
    model.train(was_training)
    hidden = upsample_mask(mask, image.shape[-1])
    masked = torch.where(hidden, torch.full_like(image, _HIDDEN_GREY), image)
    return picture_grid([image, masked, reconstruction])


def picture_grid(columns: list[Tensor], side: int = 144) -> Image.Image:
    """Columns of uint8 images (B, 3, H, W) side by side under their names, about `side` px each."""
    scale = max(1, round(side / columns[0].shape[-1]))
    cell = columns[0].shape[-1] * scale
    width = len(columns) * (cell + _GAP) + _GAP
    grid = Image.new("RGB", (width, len(columns[0]) * (cell + _GAP) + _GAP + _HEADER), "white")
    draw = ImageDraw.Draw(grid)
    for column, (name, images) in enumerate(zip(COLUMNS, columns, strict=True)):
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


def main() -> None:
    """Read a checkpoint, draw held-out samples where the data set has them, write the picture."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--picture", default="reconstruction.png", metavar="FILE")
    parser.add_argument("--rows", type=int, default=8, metavar="N")
    arguments = parser.parse_args()
    cfg = read_config(arguments)
    device = choose_device(cfg.DEVICE)
    model = build_pretrain_model(cfg)
    path: Path | None
    if cfg.MODEL.RESUME:
        path, state = Path(cfg.MODEL.RESUME), read_checkpoint(cfg.MODEL.RESUME)
    else:
        path, state = newest_checkpoint(run_folder(cfg), warn=print)
    if path is None:
        raise ValueError(f"no checkpoint in {run_folder(cfg)}: give --resume CKPT")
    restore_model(model_weights(state, path), model, path)
    dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size, train=False)
    picture = draw_reconstructions(model.to(device), dataset, device, arguments.rows)
    try:
        picture.save(arguments.picture)
    except (OSError, ValueError) as error:
        raise ValueError(f"picture {arguments.picture} cannot be written: {error}") from None
    rows = f"{' | '.join(COLUMNS)}, {arguments.rows} rows"
    print(f"wrote {arguments.picture} ({rows}) from {path}")


if __name__ == "__main__":
    run_program(main)
