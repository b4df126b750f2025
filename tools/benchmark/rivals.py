"""Other programs of the same sizes: models of transformers, a plain data pipeline on PIL."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from yacs.config import CfgNode

from data import build_mask
from data.transforms import IMAGENET_MEAN, IMAGENET_STD
from models import build_pretrain_model
from tools.measuring.kernels import synchronize
from tools.measuring.measure import Side, Work, as_it_comes, without_denormals
from tools.measuring.workloads import passes_over, synthetic_batch, training_work
from utils.config import is_finetuning, with_options
from utils.device import choose_device, choose_precision
from utils.training.metrics import peak_memory_mb
from utils.training.run import set_up_device


def sides_against(rival: str, cfg: CfgNode, updates: int) -> list[Side]:
    """Sides that do the updates otherwise: another program, or this one without an optimization.

    ValueError where that is not possible.
    """
    device = choose_device(cfg.DEVICE).type
    if rival == "eager" and cfg.TRAIN.COMPILE == "none":
        raise ValueError("--vs eager compares with --opts TRAIN.COMPILE model (or blocks)")
    if rival == "math" and device == "cpu":
        raise ValueError("--vs math is for GPUs: on CPUs attention is no kernel of torch's")
    if rival == "eager":
        return [Side(rival, training_work, (with_options(cfg, ["TRAIN.COMPILE", "none"]), updates))]
    if rival == "math":
        return [Side(rival, math_attention_work, (cfg, updates))]
    require_transformers(cfg)
    sides = [Side(rival, transformers_work, (cfg, updates), as_it_comes)]
    if device == "cpu":  # what one line brings it
        name = f"{rival}, no denormals"
        sides.append(Side(name, transformers_work, (cfg, updates), without_denormals))
    return sides


def math_attention_work(cfg: CfgNode, num_updates: int) -> Work:
    """This project's updates with attention as separate products and softmax, on GPUs."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    return training_work(cfg, num_updates)


def require_transformers(cfg: CfgNode) -> None:
    """Raise ValueError if transformers is missing or has no such model."""
    if cfg.MODEL.TYPE not in ("swin", "vit") or is_finetuning(cfg):
        raise ValueError(
            f"--vs transformers is for pre-training of MODEL.TYPE swin and vit, not for "
            f"{cfg.MODEL.TYPE} ({cfg.MODEL.NAME})"
        )
    keys = cfg.MODEL.SWIN
    if cfg.MODEL.TYPE == "swin":
        side = min(to_2tuple(cfg.DATA.IMG_SIZE)) // keys.PATCH_SIZE // 2 ** (len(keys.DEPTHS) - 1)
        if side < keys.WINDOW_SIZE:
            raise ValueError(
                f"--vs transformers needs windows that fit into every stage, which its Swin does "
                f"not narrow: MODEL.SWIN.WINDOW_SIZE is {keys.WINDOW_SIZE}, the last stage {side}"
            )
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("--vs transformers needs that package: pip install transformers")


def build_transformers_model(cfg: CfgNode, stride: int) -> nn.Module:
    """Build transformers' model of the same sizes; its ViT lacks layer scale and position bias."""
    import transformers

    sizes = {"image_size": cfg.DATA.IMG_SIZE, "encoder_stride": stride}
    if cfg.MODEL.TYPE == "swin":
        keys = cfg.MODEL.SWIN
        swin = transformers.SwinConfig(
            patch_size=keys.PATCH_SIZE,
            embed_dim=keys.EMBED_DIM,
            depths=keys.DEPTHS,
            num_heads=keys.NUM_HEADS,
            window_size=keys.WINDOW_SIZE,
            drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
            **sizes,
        )
        model: nn.Module = transformers.SwinForMaskedImageModeling(swin)
        return model
    keys = cfg.MODEL.VIT
    vit = transformers.ViTConfig(
        patch_size=keys.PATCH_SIZE,
        hidden_size=keys.EMBED_DIM,
        num_hidden_layers=keys.DEPTH,
        num_attention_heads=keys.NUM_HEADS,
        intermediate_size=int(keys.EMBED_DIM * keys.MLP_RATIO),
        **sizes,
    )
    return transformers.ViTForMaskedImageModeling(vit)


def transformers_work(cfg: CfgNode, num_updates: int) -> Work:
    """Updates as in a plain loop: autocast, backward, clipping, fused AdamW."""
    device = set_up_device(cfg)
    amp_dtype = choose_precision(cfg.TRAIN.PRECISION, device)
    encoder = build_pretrain_model(cfg).encoder
    model = build_transformers_model(cfg, encoder.stride).to(device).train()
    image, mask = (part.to(device) for part in synthetic_batch(cfg, encoder))
    inputs = {"pixel_values": image / 255, "bool_masked_pos": mask.flatten(1)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    mixed = amp_dtype != torch.float32
    steps = max(cfg.TRAIN.ACCUMULATION_STEPS, 1)

    def updates() -> None:
        """Run all updates; wait until the device has finished."""
        for _ in range(num_updates):
            for _ in range(steps):
                with torch.autocast(device.type, dtype=amp_dtype, enabled=mixed):
                    loss = model(**inputs).loss / steps
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(device)

    return Work(updates, lambda: {"memory_mb": peak_memory_mb(device)})


class PlainPictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures loaded in the usual way: PIL, torchvision's transforms on PIL images."""

    def __init__(self, folder: str, size: int, mask: Callable[[], Tensor]) -> None:
        self.paths = sorted(Path(folder).iterdir())
        self.mask = mask
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.67, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Normalized float32 image and mask."""
        image: Any = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), self.mask()


def pillow_work(cfg: CfgNode, patch_size: int) -> Work:
    """One pass over the same pictures with torch's own loader."""
    keys = cfg.DATA
    loader = DataLoader(
        PlainPictures(keys.DATA_PATH, keys.IMG_SIZE, build_mask(cfg, patch_size)),
        batch_size=keys.BATCH_SIZE,
        shuffle=True,
        num_workers=keys.NUM_WORKERS,
        drop_last=True,
        persistent_workers=keys.NUM_WORKERS > 0,
    )
    return passes_over(loader)
