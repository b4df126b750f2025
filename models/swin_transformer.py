"""Swin Transformer V1 (arXiv 2103.14030), with the mask token of SimMIM as an option."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.layers import (
    Mlp,
    PatchEmbed,
    attend,
    drop_path,
    drop_path_rates,
    gather_position_bias,
    hide_tokens,
    init_linear,
    relative_position_index,
    run_block,
    window_partition,
    window_reverse,
)
from utils.checks import one_of, require_divisible


class WindowAttention(nn.Module):
    """Self-attention in windows of `window` x `window` tokens, with a relative position bias."""

    def __init__(
        self,
        dim: int,
        window: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window - 1) ** 2, num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = relative_position_index(window, window)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, windows: Tensor, shift_mask: Tensor | None = None) -> Tensor:
        """(B * windows, L, C) -> the same; `shift_mask` (windows, L, L) is added to the scores."""
        qkv = self.qkv(windows).view(*windows.shape[:2], 3, self.num_heads, -1)
        bias = gather_position_bias(self.relative_position_bias_table, self.relative_position_index)
        bias = bias.unsqueeze(0)
        if shift_mask is not None:
            bias = bias + shift_mask.unsqueeze(1)  # (windows, heads, L, L)
        return self.drop(self.proj(attend(qkv, bias, self.scale)))


class SwinBlock(nn.Module):
    """Pre-norm attention in (shifted) windows and an MLP, both residual."""

    def __init__(
        self,
        dim: int,
        grid_size: int,
        window: int,
        shift: int,
        drop_path_rate: float,
        *,
        num_heads: int,
        qkv_bias: bool,
        qk_scale: float | None,
        mlp_ratio: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.grid_size, self.window, self.shift = grid_size, window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, num_heads, qkv_bias, qk_scale, drop)
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, tokens: Tensor, shift_mask: Tensor | None = None) -> Tensor:
        """(B, L, C) -> (B, L, C); `shift_mask` separates regions where the block is shifted."""
        tokens = tokens + self.drop_path(self._attend_in_windows(self.norm1(tokens), shift_mask))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def _attend_in_windows(self, tokens: Tensor, shift_mask: Tensor | None) -> Tensor:
        size = self.grid_size
        feature_map = tokens.view(-1, size, size, tokens.shape[-1])
        if self.shift:
            feature_map = torch.roll(feature_map, (-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(
            window_partition(feature_map, self.window), shift_mask if self.shift else None
        )
        feature_map = window_reverse(windows, self.window, size, size)
        if self.shift:
            feature_map = torch.roll(feature_map, (self.shift, self.shift), dims=(1, 2))
        return feature_map.view(tokens.shape)


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbouring tokens: (B, L, C) -> (B, L/4, 2C)."""

    def __init__(self, dim: int, grid_size: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Concatenate the quarter maps (0,0), (1,0), (0,1), (1,1), normalize, reduce."""
        batch, _, channels = tokens.shape
        half = self.grid_size // 2
        quarters = tokens.view(batch, half, 2, half, 2, channels)
        joined = quarters.permute(0, 1, 3, 4, 2, 5).reshape(batch, half * half, 4 * channels)
        return self.reduction(self.norm(joined))


class SwinStage(nn.Module):
    """Blocks of one resolution, every other one shifted; then the merging to the next."""

    def __init__(
        self,
        dim: int,
        grid_size: int,
        window: int,
        drop_path_rates: Sequence[float],
        merge: bool,
        **block_options: Any,
    ) -> None:
        super().__init__()
        window = min(window, grid_size)
        shift = window // 2 if grid_size > window else 0
        self.blocks = nn.ModuleList(
            SwinBlock(dim, grid_size, window, shift if block % 2 else 0, rate, **block_options)
            for block, rate in enumerate(drop_path_rates)
        )
        self.downsample = PatchMerging(dim, grid_size) if merge else None
        self.shift_mask: Tensor | None
        mask = shift_mask(grid_size, window, shift) if shift else None
        self.register_buffer("shift_mask", mask, persistent=False)

    def forward(self, tokens: Tensor, recompute: bool = False) -> Tensor:
        """(B, L, C) -> (B, L/4, 2C), or (B, L, C) in the last stage."""
        for block in self.blocks:
            tokens = run_block(block, tokens, self.shift_mask, recompute=recompute)
        return tokens if self.downsample is None else self.downsample(tokens)


def shift_mask(grid_size: int, window: int, shift: int) -> Tensor:
    """-100 between positions of a window that were no neighbours unshifted: (windows, L, L)."""
    bounds = torch.arange(grid_size)
    region = (bounds >= grid_size - window).long() + (bounds >= grid_size - shift).long()
    regions = (3 * region[:, None] + region[None, :]).view(1, grid_size, grid_size, 1)
    windows = window_partition(regions, window).squeeze(-1)  # (windows, L)
    return torch.where(windows[:, :, None] == windows[:, None, :], 0.0, -100.0)


def check_sizes(image_size: int, patch_size: int, num_stages: int, window: int) -> None:
    """ValueError unless every stage's feature map is whole, even where merged, and fits windows."""
    require_divisible(image_size, patch_size, "DATA.IMG_SIZE", "PATCH_SIZE")
    if _fits(image_size, patch_size, num_stages, window):
        return
    stride = patch_size * 2 ** (num_stages - 1)
    near = sorted(range(stride, 2 * image_size + 64 * stride, stride), key=_distance(image_size))
    sizes = [size for size in near if _fits(size, patch_size, num_stages, window)][:2]
    near = sorted(range(2, image_size // patch_size + 1), key=_distance(window))
    windows = [side for side in near if _fits(image_size, patch_size, num_stages, side)][:2]
    window_hint = f"; or WINDOW_SIZE {one_of(sorted(windows))}" if windows else ""
    raise ValueError(
        f"DATA.IMG_SIZE is {image_size}, which patches of {patch_size}, {num_stages} stages and "
        f"windows of {window} do not divide; nearest legal: {one_of(sorted(sizes))}{window_hint}"
    )


def _distance(wanted: int) -> Callable[[int], int]:
    return lambda value: abs(value - wanted)


def _fits(image_size: int, patch_size: int, num_stages: int, window: int) -> bool:
    if image_size % (patch_size * 2 ** (num_stages - 1)):
        return False
    grids = [image_size // patch_size // 2**stage for stage in range(num_stages)]
    return all(grid <= window or grid % window == 0 for grid in grids)


class SwinTransformer(nn.Module):
    """Swin V1 of any number of stages; classifies images, or encodes them for SimMIM.

    `num_classes` 0 leaves the head out; `use_mask_token` adds the token that hides patches.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        ape: bool = False,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        num_classes: int = 1000,
        use_mask_token: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(
                f"DEPTHS {list(depths)} and NUM_HEADS {list(num_heads)} differ in length"
            )
        for stage, heads in enumerate(num_heads):
            require_divisible(
                embed_dim * 2**stage, heads, f"the width of stage {stage}", "MODEL.SWIN.NUM_HEADS"
            )
        check_sizes(image_size, patch_size, len(depths), window_size)
        self.in_chans, self.patch_size, self.depths = in_chans, patch_size, list(depths)
        self.stride = patch_size * 2 ** (len(depths) - 1)
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.num_layers = sum(depths)
        self.use_checkpoint = use_checkpoint

        self.patch_embed = PatchEmbed(image_size, patch_size, in_chans, embed_dim, norm=patch_norm)
        self.absolute_pos_embed: nn.Parameter | None = None
        if ape:
            num_tokens = self.patch_embed.grid_size**2
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))
            trunc_normal_(self.absolute_pos_embed, std=0.02)
        if use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            trunc_normal_(self.mask_token, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        options = dict(qkv_bias=qkv_bias, qk_scale=qk_scale, mlp_ratio=mlp_ratio, drop=drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, self.num_layers))
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim, grid_size = embed_dim * 2**stage, self.patch_embed.grid_size // 2**stage
            stage_rates = [next(rates) for _ in range(depth)]
            merge = stage < len(depths) - 1
            self.layers.append(
                SwinStage(
                    dim, grid_size, window_size, stage_rates, merge, num_heads=heads, **options
                )
            )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else None
        self.apply(init_linear)

    def forward_features(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, num_features, H/stride, W/stride).

        Patches where `mask` (B, H/patch, W/patch) is True are hidden from the encoder.
        """
        tokens = self.patch_embed(image)
        if mask is not None:
            tokens = hide_tokens(tokens, self.mask_token, mask)
        if self.absolute_pos_embed is not None:
            tokens = tokens + self.absolute_pos_embed
        tokens = self.pos_drop(tokens)
        for layer in self.layers:
            tokens = layer(tokens, recompute=self.use_checkpoint and self.training)
        side = self.patch_embed.image_size // self.stride
        return self.norm(tokens).transpose(1, 2).unflatten(2, (side, side))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes); without a head, pooled features."""
        pooled = self.forward_features(image).flatten(2).mean(dim=2)
        return pooled if self.head is None else self.head(pooled)

    def layer_of(self, name: str) -> int:
        """Layer id: 0 stem, block + 1, merging as the last block of its stage, n + 1 all else."""
        part, *rest = name.split(".")
        if part in ("patch_embed", "mask_token", "absolute_pos_embed"):
            return 0
        if part != "layers":
            return self.num_layers + 1
        stage = int(rest[0])
        block = int(rest[2]) if rest[1] == "blocks" else self.depths[stage] - 1
        return sum(self.depths[:stage]) + block + 1

    def no_weight_decay(self, name: str) -> bool:
        """Position parameters and the mask token."""
        last = name.rsplit(".", 1)[-1]
        return last in ("absolute_pos_embed", "mask_token", "relative_position_bias_table")
