"""Layers that several encoders share: patch embedding, mask token, MLP, stochastic depth."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from utils.messages import require_divisible


class PatchEmbed(nn.Module):
    """Cut (B, C, H, W) into patches and embed each: (B, H/p * W/p, embed_dim), row by row."""

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = image_size[0] // patch_size, image_size[1] // patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm: nn.Module = nn.LayerNorm(embed_dim) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches; ValueError for an image of another size or channel count."""
        require_shape(image, self.proj.in_channels, self.image_size)
        return self.norm(self.proj(image).flatten(2).transpose(1, 2))


def require_shape(image: Tensor, in_chans: int, image_size: tuple[int, int]) -> None:
    """Raise ValueError unless images (B, C, H, W) have the model's channels and size."""
    shape, expected = tuple(image.shape[1:]), (in_chans, *image_size)
    if shape != expected:
        raise ValueError(f"image of shape {shape}, the model is for {expected}")


def require_size(
    image_size: tuple[int, int], patch_size: int, num_stages: int, patch_name: str
) -> None:
    """Raise ValueError unless patches divide the image, and its sides are at least the stride."""
    stride = patch_size * 2 ** (num_stages - 1)
    for side in image_size:
        require_divisible(side, patch_size, "DATA.IMG_SIZE", patch_name)
        if side < stride:
            raise ValueError(
                f"DATA.IMG_SIZE is {side}, too small for {num_stages} stages and patches of "
                f"{patch_size}: expected at least {stride}"
            )


def hide_tokens(tokens: Tensor, mask_token: Tensor, mask: Tensor) -> Tensor:
    """Replace the tokens (B, L, C) where `mask` (B, h, w), h * w = L, is True (section 3.2)."""
    return torch.where(mask.flatten(1).unsqueeze(-1), mask_token.to(tokens.dtype), tokens)


class Mlp(nn.Module):
    """Linear, GELU, linear on the last axis; dropout at the end and, if `drop_hidden`, between."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, drop_hidden: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop_hidden = nn.Dropout(drop if drop_hidden else 0.0)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.drop(self.fc2(self.drop_hidden(self.act(self.fc1(tokens)))))


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth for one residual branch; the identity at rate 0."""
    return DropPath(rate) if rate > 0 else nn.Identity()


def drop_path_rates(last_rate: float, depth: int) -> list[float]:
    """Rate of each block, linear from 0 in the first to `last_rate` in the last."""
    return [last_rate * block / max(depth - 1, 1) for block in range(depth)]


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """Call a block; with `recompute`, recompute its activations in the backward pass.

    Only the forward pass updates the running statistics of batch norms.
    """
    result: Tensor
    if not (recompute and torch.is_grad_enabled()):
        result = block(*inputs)
        return result
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    if norms and not torch.compiler.is_compiling():  # a compiled model updates them once by itself
        result = checkpoint(
            block,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _keeping_statistics(norms)),
        )
    else:
        result = checkpoint(block, *inputs, use_reentrant=False)
    return result


@contextlib.contextmanager
def _keeping_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let forward passes inside `with` update copies of the running statistics.

    The backward pass has saved the statistics themselves, so they must not be written again.
    """
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def init_linear(module: nn.Module, cut: float = 2.0) -> None:
    """Initialize a linear layer: normal of std 0.02, truncated at +-`cut` (absolute), bias 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02, a=-cut, b=cut)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
