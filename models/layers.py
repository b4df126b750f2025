"""What several encoders share: patch embedding, mask token, MLP, stochastic depth."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
        expected = (self.proj.in_channels, *self.image_size)
        if tuple(image.shape[1:]) != expected:
            raise ValueError(
                f"image of shape {tuple(image.shape[1:])}, the model is for {expected}"
            )
        return self.norm(self.proj(image).flatten(2).transpose(1, 2))


def hide_tokens(tokens: Tensor, mask_token: Tensor, mask: Tensor) -> Tensor:
    """Replace the tokens (B, L, C) where `mask` (B, h, w), h * w = L, is True (section 3.2)."""
    return torch.where(mask.flatten(1).unsqueeze(-1), mask_token.to(tokens.dtype), tokens)


class Mlp(nn.Module):
    """Linear, GELU, linear on the last axis; dropout at the end and, if asked, in between."""

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
    """Stochastic depth for one residual branch; nothing at all at rate 0."""
    return DropPath(rate) if rate > 0 else nn.Identity()


def drop_path_rates(last_rate: float, depth: int) -> list[float]:
    """Linear from 0 in the first block to `last_rate` in the last."""
    return [last_rate * block / max(depth - 1, 1) for block in range(depth)]


def run_block(block: Callable[..., Tensor], *inputs: Any, recompute: bool) -> Tensor:
    """Call a block; with `recompute` its activations are computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        result: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return result
    return block(*inputs)


def init_linear(module: nn.Module, cut: float = 2.0) -> None:
    """Linear layers: normal of std 0.02 cut at +-`cut` (absolute), biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02, a=-cut, b=cut)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
