"""Measure this project against what people use today, in turn (A B A B) in one run.

python -m tools.benchmark step --cfg FILE --opts KEY VALUE ...
    whole updates against Hugging Face transformers (pip install transformers)
python -m tools.benchmark data --cfg FILE
    decoding, augmentation and masks on one core against a plain pipeline on PIL images
"""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.layers import to_2tuple
from torch import Tensor, nn
from torchvision import transforms
from yacs.config import CfgNode

from data.datasets import ImageFolder
from data.masking import RandomMask
from data.samples import PretrainDataset
from data.transforms import IMAGENET_MEAN, IMAGENET_STD, Normalizer, pretrain_transform
from models import build_pretrain_model
from utils.arguments import make_parser, read_config
from utils.device import choose_device, choose_precision
from utils.metrics import peak_memory_mb
from utils.run import run_program
from utils.sharding import mixed_precision

OURS = "this project"
THEIRS = "transformers"
PLAIN = "plain PIL"


def main() -> None:
    """Run one measurement; prints medians, the ratio with its spread, and a line of JSON."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("what", choices=("step", "data"))
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of one A and one B")
    arguments = parser.parse_args()
    cfg = read_config(arguments)
    if arguments.what == "step":
        step_figures(cfg, arguments.rounds)
    else:
        data_figures(cfg, arguments.rounds)


def step_figures(cfg: CfgNode, rounds: int) -> None:
    """Whole updates on one synthetic batch: time in turn, peak memory in a process for each."""
    sides = (OURS, THEIRS)
    spawn = multiprocessing.get_context("spawn")
    memory = {}
    for side in sides:
        with spawn.Pool(1) as pool:
            memory[side] = pool.apply(_peak_memory, (cfg, side))
    times = in_turn({side: make_update(cfg, side) for side in sides}, rounds)
    for side in sides:
        print(f"{side:>14}: peak memory {memory[side]:.0f} MiB")
    report(times, cfg.DATA.BATCH_SIZE, extra={"memory_mb": memory})


def _peak_memory(cfg: CfgNode, side: str) -> float:
    _theirs_classes()  # both sides carry the same imported code
    update = make_update(cfg, side)
    for _ in range(3):
        update()
    return peak_memory_mb(choose_device(cfg.DEVICE))


def make_update(cfg: CfgNode, side: str) -> Callable[[], None]:
    """A call that runs forward, backward, clipping and AdamW of one side on a fixed batch."""
    device = choose_device(cfg.DEVICE)
    amp_dtype = choose_precision(cfg.TRAIN.PRECISION, device)
    model, arguments = (_ours if side == OURS else _theirs)(cfg)
    model.to(device).train()
    arguments = {name: tensor.to(device) for name, tensor in arguments.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def update() -> None:
        """One update of the weights."""
        with mixed_precision(model, device, amp_dtype):
            result = model(**arguments)
        loss = result if side == OURS else result.loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return update


def _ours(cfg: CfgNode) -> tuple[nn.Module, dict[str, Tensor]]:
    model = build_pretrain_model(cfg)
    size, cell = cfg.DATA.IMG_SIZE, cfg.DATA.MASK_PATCH_SIZE
    mask = RandomMask(size, cell, model.encoder.patch_size, cfg.DATA.MASK_RATIO)
    masks = torch.stack([mask() for _ in range(cfg.DATA.BATCH_SIZE)])
    return model, {
        "image": torch.randn(len(masks), model.encoder.in_chans, *to_2tuple(size)),
        "mask": masks,
    }


def _theirs(cfg: CfgNode) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same sizes from transformers, whose ViT has no layer scale or relative positions."""
    ours, arguments = _ours(cfg)
    sizes = {"image_size": cfg.DATA.IMG_SIZE, "encoder_stride": ours.encoder.stride}
    SwinConfig, Swin, ViTConfig, ViT = _theirs_classes()  # noqa: N806
    if cfg.MODEL.TYPE not in ("swin", "vit"):
        raise ValueError(f"MODEL.TYPE is {cfg.MODEL.TYPE}; the step is compared for swin and vit")
    if cfg.MODEL.TYPE == "swin":
        keys = cfg.MODEL.SWIN
        model: nn.Module = Swin(
            SwinConfig(
                patch_size=keys.PATCH_SIZE,
                embed_dim=keys.EMBED_DIM,
                depths=keys.DEPTHS,
                num_heads=keys.NUM_HEADS,
                window_size=keys.WINDOW_SIZE,
                drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
                **sizes,
            )
        )
    else:
        keys = cfg.MODEL.VIT
        model = ViT(
            ViTConfig(
                patch_size=keys.PATCH_SIZE,
                hidden_size=keys.EMBED_DIM,
                num_hidden_layers=keys.DEPTH,
                num_attention_heads=keys.NUM_HEADS,
                intermediate_size=int(keys.EMBED_DIM * keys.MLP_RATIO),
                **sizes,
            )
        )
    return model, {
        "pixel_values": arguments["image"],
        "bool_masked_pos": arguments["mask"].flatten(1),
    }


def _theirs_classes() -> tuple[Any, Any, Any, Any]:
    try:
        from transformers import (
            SwinConfig,
            SwinForMaskedImageModeling,
            ViTConfig,
            ViTForMaskedImageModeling,
        )
    except ImportError:
        raise ValueError(
            "the step is compared with transformers: pip install transformers"
        ) from None
    return SwinConfig, SwinForMaskedImageModeling, ViTConfig, ViTForMaskedImageModeling


def data_figures(cfg: CfgNode, rounds: int, num_pictures: int = 64) -> None:
    """Reading, cropping and masking 500 x 375 JPEGs on one core."""
    torch.set_num_threads(1)
    size = cfg.DATA.IMG_SIZE
    with tempfile.TemporaryDirectory() as folder:
        _write_jpegs(Path(folder), num_pictures)
        pictures = ImageFolder(folder)
        mask = RandomMask(size, cfg.DATA.MASK_PATCH_SIZE, 4, cfg.DATA.MASK_RATIO)
        ours = PretrainDataset(pictures, pretrain_transform(size), mask, Normalizer(), cfg.SEED)
        paths = sorted(Path(folder).iterdir())
        plain = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.67, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        calls: dict[str, Callable[[], Any]] = {
            OURS: lambda: [ours[0, index] for index in range(num_pictures)],
            PLAIN: lambda: [(plain(Image.open(path).convert("RGB")), mask()) for path in paths],
        }
        report(in_turn(calls, rounds), num_pictures)


def _write_jpegs(folder: Path, number: int) -> None:
    """Smooth pictures with some noise: about as many bytes as photographs of that size."""
    random = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.jpg", quality=90)


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in each round, after one call each to warm up."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def report(
    times: dict[str, list[float]], num_images: int, extra: dict[str, Any] | None = None
) -> None:
    """Print images/s (median), and how many times as fast the first is as the second."""
    first, second = times
    ratios = sorted(b / a for a, b in zip(times[first], times[second], strict=True))
    for name, seconds in times.items():
        print(f"{name:>14}: {num_images / statistics.median(seconds):.2f} images/s")
    middle = statistics.median(ratios)
    print(f"{'ratio':>14}: {middle:.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
    figures = {"argv": sys.argv[1:], "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(figures | {"seconds": times, "ratio": middle} | (extra or {})))


if __name__ == "__main__":
    run_program(main)
