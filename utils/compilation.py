"""torch.compile for a model, by TRAIN.COMPILE."""

import os
import shutil
from typing import Any

import torch
from torch import nn


def compile_parts(model: nn.Module, what: str, device: torch.device) -> None:
    """Compile, in place, nothing, each of the encoder's blocks, or the whole `model`.

    Names in checkpoints stay as they are. Blocks start sooner, the whole model runs faster. What
    is random inside (drop path) is drawn otherwise than without, yet follows from the same seeds.
    ValueError where compiling for the CPU lacks a C++ compiler.
    """
    if what == "none":
        return
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"TRAIN.COMPILE is {what}, which needs a C++ compiler on CPUs, and {compiler} is not "
            "installed (the environment variable CXX names another one)"
        )
    parts = [model] if what == "model" else require_blocks(model, "TRAIN.COMPILE blocks")
    # Blocks share one function; each may need versions of its own: stage, drop path, evaluation.
    torch._dynamo.config.recompile_limit = 8 * len(parts)
    for part in parts:
        part.compile(dynamic=False)


def require_blocks(model: nn.Module, needed_by: str) -> list[nn.Module]:
    """The blocks of a model's encoder, first to last; ValueError where it does not tell them."""
    encoder: Any = getattr(model, "encoder", model)
    if not hasattr(encoder, "blocks"):
        raise ValueError(
            f"{needed_by} needs the blocks of the encoder, and {type(encoder).__name__} has no "
            "`blocks` (its parts in order, each called by itself)"
        )
    return list(encoder.blocks)
