"""Swin Transformer V1 (arXiv 2103.14030), with the mask token of SimMIM as an option."""

from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.attention import attend
from models.layers import Mlp, drop_path, init_linear
from models.origin import Adapted, image_aspect
from models.position_bias import TABLE, resize_tables
from models.swin_hierarchy import SwinHierarchy
from models.windows import Grid, Windows, gather_position_bias, relative_position_index


class WindowAttention(nn.Module):
    """Self-attention in windows of (rows, columns) tokens, with a relative position bias."""

    def __init__(
        self,
        dim: int,
        window: Grid,
        num_heads: int,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
    ) -> None:
        super().__init__()
        self.window, self.num_heads = window, num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        num_offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_offsets, num_heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.relative_position_index: Tensor
        index = relative_position_index(*window)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B * windows, L, C) -> the same; `mask` (windows, L, L) is added to the scores."""
        qkv = self.qkv(windows).unflatten(2, (3, self.num_heads, -1))
        bias = gather_position_bias(self.relative_position_bias_table, self.relative_position_index)
        bias = bias.unsqueeze(0)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # (windows, heads, L, L)
        return self.drop(self.proj(attend(qkv, bias, self.scale)))


class SwinBlock(nn.Module):
    """Pre-norm attention in windows and an MLP, both residual."""

    def __init__(
        self, dim: int, attention: nn.Module, mlp_ratio: float, drop: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, tokens: Tensor, windows: Windows) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        tokens = tokens + self.drop_path(windows(self.norm1(tokens), self.attn))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class SwinTransformer(SwinHierarchy):
    """Swin V1; further arguments go to `SwinHierarchy`."""

    def __init__(
        self,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        **hierarchy: Any,
    ) -> None:
        def make_block(
            stage: int, index: int, dim: int, num_heads: int, window: Grid, drop_path_rate: float
        ) -> SwinBlock:
            """Build one block of the hierarchy (see `MakeBlock`)."""
            attention = WindowAttention(dim, window, num_heads, qkv_bias, qk_scale, drop_rate)
            return SwinBlock(dim, attention, mlp_ratio, drop_rate, drop_path_rate)

        super().__init__(
            make_block, "MODEL.SWIN", merge_then_norm=False, drop_rate=drop_rate, **hierarchy
        )
        self.apply(init_linear)

    def adapt_weights(self, weights: dict[str, Tensor], content: object) -> Adapted:
        """Resize position biases to this model's windows, and the embedding to its grid."""
        resized = resize_tables(weights, self, image_aspect(content))
        return Adapted(resized + self.resize_positions(weights, content))

    def no_weight_decay(self, name: str) -> bool:
        """Whether it is a position parameter or the mask token."""
        return name.endswith(TABLE) or super().no_weight_decay(name)
