"""Swin Transformer V2 (arXiv 2111.09883), with the mask token of SimMIM as an option."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import attend, project_qkv
from models.layers import Mlp, drop_path, init_linear
from models.origin import Adapted, swinv2_window
from models.position_bias import relative_coordinates, window_of_coordinates
from models.swin_hierarchy import SwinHierarchy
from models.windows import Grid, Windows, gather_position_bias, relative_position_index
from utils.messages import short, shown

_COORDINATES = "relative_coords_table"
_MAX_LOGIT_SCALE = math.log(100)
_HIDDEN = 512  # of the network that computes position biases
_BIAS_RANGE = 16  # biases lie between 0 and this


class CosineWindowAttention(nn.Module):
    """Self-attention in windows by scaled cosines, with a continuous relative position bias.

    A small network computes the bias from log-spaced relative coordinates (section 3.3), in units
    of `pretrained_window`, the window in which the network was trained.
    """

    def __init__(
        self,
        dim: int,
        window: Grid,
        num_heads: int,
        qkv_bias: bool,
        drop: float,
        pretrained_window: Grid,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.relative_coords_table: Tensor
        # Stored, since it identifies the window in which the network was trained.
        coordinates = relative_coordinates(window, pretrained_window)
        self.register_buffer(_COORDINATES, coordinates)
        self.relative_position_index: Tensor
        index = relative_position_index(*window)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, _HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, num_heads, bias=False)
        )
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B * windows, L, C) -> the same; `mask` (windows, L, L) is added to the scores."""
        qkv = project_qkv(windows, self.qkv.weight, self.q_bias, self.v_bias, self.num_heads)
        query, key, value = qkv.unbind(2)  # (B * windows, L, heads, d)
        # Norms, scales and biases are float32 or wider: half precision would round cosines that
        # are then multiplied by up to 100.
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        scale = self.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp().view(-1, 1)
        query = F.normalize(query.to(dtype), dim=-1) * scale
        key = F.normalize(key.to(dtype), dim=-1)
        qkv = torch.stack((query.to(value.dtype), key.to(value.dtype), value), dim=2)
        bias = self._position_bias().unsqueeze(0)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # (windows, heads, L, L)
        return self.drop(self.proj(attend(qkv, bias, scale=1.0)))

    def _position_bias(self) -> Tensor:
        """(heads, L, L), in float32 or wider."""
        with torch.autocast(self.relative_coords_table.device.type, enabled=False):
            table = _BIAS_RANGE * self.cpb_mlp(self.relative_coords_table).sigmoid()
        return gather_position_bias(table.flatten(0, -2), self.relative_position_index)


class SwinV2Block(nn.Module):
    """Residual window attention and MLP, each branch normalized at its end (section 3.2).

    `extra_norm` adds a norm on the main branch, as in the largest models.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        mlp_ratio: float,
        drop: float,
        drop_path_rate: float,
        extra_norm: bool,
    ) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = nn.LayerNorm(dim)
        self.drop_path = drop_path(drop_path_rate)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if extra_norm else None
        for norm in (self.norm1, self.norm2):  # every block starts as the identity
            nn.init.zeros_(norm.weight)

    def forward(self, tokens: Tensor, windows: Windows) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        tokens = tokens + self.drop_path(self.norm1(windows(tokens, self.attn)))
        tokens = tokens + self.drop_path(self.norm2(self.mlp(tokens)))
        return tokens if self.norm3 is None else self.norm3(tokens)


class SwinTransformerV2(SwinHierarchy):
    """Swin V2; further arguments go to `SwinHierarchy`.

    `pretrained_window_sizes` are the windows of the weights to start from, one per stage (0: this
    model's own); `extra_norm_every` n adds a norm after every n-th block of a stage.
    """

    def __init__(
        self,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pretrained_window_sizes: Sequence[int] = (),
        extra_norm_every: int = 0,
        drop_rate: float = 0.0,
        **hierarchy: Any,
    ) -> None:
        pretrained = _per_stage(pretrained_window_sizes, len(hierarchy["depths"]))

        def make_block(
            stage: int, index: int, dim: int, num_heads: int, window: Grid, drop_path_rate: float
        ) -> SwinV2Block:
            """Build one block of the hierarchy (see `MakeBlock`)."""
            known = (pretrained[stage], pretrained[stage]) if pretrained[stage] else window
            attention = CosineWindowAttention(dim, window, num_heads, qkv_bias, drop_rate, known)
            extra_norm = extra_norm_every > 0 and (index + 1) % extra_norm_every == 0
            return SwinV2Block(dim, attention, mlp_ratio, drop_rate, drop_path_rate, extra_norm)

        super().__init__(
            make_block, "MODEL.SWINV2", merge_then_norm=True, drop_rate=drop_rate, **hierarchy
        )
        self.apply(init_linear)

    def rename_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the bias network of older files to its current name."""
        return {name.replace(".rpe_mlp.", ".cpb_mlp."): value for name, value in weights.items()}

    def adapt_weights(self, weights: dict[str, Tensor], content: object) -> Adapted:
        """Compute relative coordinates for this model's windows, in units of the file's windows.

        Without windows in the file, those of the configuration stay. An absolute position embedding
        is resized. ValueError where the file's coordinates are invalid.
        """
        adapted = Adapted(self.resize_positions(weights, content))
        told: dict[str, Grid] = {}
        for name, own in self.state_dict().items():
            if not name.endswith(_COORDINATES):
                continue
            stage = name.split(".")[1]
            window = swinv2_window(content, int(stage))
            stored = weights.pop(name, None)
            if stored is not None:
                try:
                    window = window_of_coordinates(stored)
                except ValueError as error:
                    raise ValueError(f"{short(name)}: {error}") from None
            adapted.computed[name] = own
            if window is not None:
                rows, columns = own.shape[1:3]
                own_window = (rows + 1) // 2, (columns + 1) // 2
                adapted.computed[name] = relative_coordinates(own_window, window).to(own)
                told[stage] = window
        if told:
            windows = ", ".join(f"{height}x{width}" for height, width in told.values())
            adapted.notes.append(
                f"position biases were learned in windows of {windows}, says the file"
            )
        return adapted

    def no_weight_decay(self, name: str) -> bool:
        """Whether it is a position parameter, a scale of the cosines or the mask token."""
        excluded = "cpb_mlp" in name or "logit_scale" in name
        return excluded or super().no_weight_decay(name)


def _per_stage(sizes: Sequence[int], num_stages: int) -> list[int]:
    """One window per stage, all 0 by default; ValueError where their number is wrong."""
    if not any(sizes):
        return [0] * num_stages
    if len(sizes) != num_stages:
        raise ValueError(
            f"MODEL.SWINV2.PRETRAINED_WINDOW_SIZES is {shown(list(sizes))}, expected one number "
            f"for each of the {num_stages} stages"
        )
    return list(sizes)
