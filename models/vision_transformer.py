"""Vision Transformer as in BEiT (arXiv 2106.08254): layer scale, relative position bias."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from models.attention import aligned_bias, attend, compute_dtype, project_qkv
from models.layers import (
    Mlp,
    PatchEmbed,
    drop_path,
    drop_path_rates,
    hide_tokens,
    init_linear,
    run_block,
)
from models.origin import Adapted, image_aspect
from models.position_bias import TABLE, resize_embedding, resize_tables
from models.windows import Grid, gather_position_bias, relative_position_index
from utils.messages import require_divisible

_EPS = 1e-6


def token_position_index(grid: Grid) -> Tensor:
    """Row of the bias table for each pair of tokens, CLS first: (L + 1, L + 1).

    After the rows of the relative positions come CLS to patch, patch to CLS and CLS to CLS.
    """
    num_offsets = _num_offsets(grid)
    length = grid[0] * grid[1] + 1
    index = torch.empty(length, length, dtype=torch.long)
    index[1:, 1:] = relative_position_index(*grid)
    index[0, :] = num_offsets
    index[:, 0] = num_offsets + 1
    index[0, 0] = num_offsets + 2
    return index


def _num_offsets(grid: Grid) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def add_position_bias(module: nn.Module, grid: Grid, num_heads: int) -> None:
    """Add a bias table (rows, heads) of zeros and the index into it to `module`."""
    index = token_position_index(grid)
    module.register_buffer("relative_position_index", index, persistent=False)
    module.window = grid  # type: ignore[assignment]  # a tuple, not a module
    table = torch.zeros(_num_offsets(grid) + 3, num_heads)
    module.register_parameter("relative_position_bias_table", nn.Parameter(table))


class RelativePositionBias(nn.Module):
    """A relative position bias that all blocks share."""

    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(self, grid: Grid, num_heads: int) -> None:
        super().__init__()
        add_position_bias(self, grid, num_heads)

    def forward(self) -> Tensor:
        """The bias (heads, L + 1, L + 1)."""
        return gather_position_bias(self.relative_position_bias_table, self.relative_position_index)


class Attention(nn.Module):
    """Self-attention over all tokens; the key bias is fixed at 0.

    With `grid`, it has its own relative position bias.
    """

    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool, drop: float, grid: Grid | None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.owns_position_bias = grid is not None
        if grid is not None:
            add_position_bias(self, grid, num_heads)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, tokens: Tensor, shared_bias: Tensor | None = None) -> Tensor:
        """(B, L, C) -> (B, L, C); `shared_bias` (1, heads, L, L) is added to the scores."""
        qkv = project_qkv(tokens, self.qkv.weight, self.q_bias, self.v_bias, self.num_heads)
        return self.drop(self.proj(attend(qkv, self._bias(shared_bias), self.scale)))

    def _bias(self, shared_bias: Tensor | None) -> Tensor | None:
        """Sum of the shared bias and this block's own, (1, heads, L, L); None without either."""
        bias = shared_bias
        if self.owns_position_bias:
            own = gather_position_bias(
                self.relative_position_bias_table, self.relative_position_index
            )
            bias = own.unsqueeze(0) if bias is None else bias + own
        return bias


class ViTBlock(nn.Module):
    """Pre-norm attention and MLP, both residual and, with `init_values`, scaled per channel."""

    def __init__(
        self,
        dim: int,
        attention: Attention,
        mlp_ratio: float,
        drop: float,
        drop_path_rate: float,
        init_values: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = attention
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop, drop_hidden=False)
        self.gamma_1: nn.Parameter | None = None
        self.gamma_2: nn.Parameter | None = None
        if init_values is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), init_values))
            self.gamma_2 = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, tokens: Tensor, shared_bias: Tensor | None = None) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        mixed = _scaled(self.attn(self.norm1(tokens), shared_bias), self.gamma_1)
        tokens = tokens + self.drop_path(mixed)
        return tokens + self.drop_path(_scaled(self.mlp(self.norm2(tokens)), self.gamma_2))


def _scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    """Apply layer scale unless `gamma` is None."""
    return branch if gamma is None else gamma * branch


class VisionTransformer(nn.Module):
    """ViT that classifies images, or encodes them for SimMIM.

    `image_size` is a side or (height, width); `num_classes` 0 leaves the head out;
    `use_mask_token` adds the token that hides patches.
    """

    def __init__(
        self,
        image_size: int | Grid = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = 0.1,
        use_ape: bool = False,
        use_rpb: bool = False,
        use_shared_rpb: bool = True,
        use_mean_pooling: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        num_classes: int = 1000,
        use_mask_token: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        sides: Grid = to_2tuple(image_size)
        for side in sides:
            require_divisible(side, patch_size, "DATA.IMG_SIZE", "MODEL.VIT.PATCH_SIZE")
        require_divisible(embed_dim, num_heads, "MODEL.VIT.EMBED_DIM", "MODEL.VIT.NUM_HEADS")
        self.in_chans, self.patch_size, self.stride = in_chans, patch_size, patch_size
        self.num_features, self.num_layers = embed_dim, depth
        self.use_checkpoint = use_checkpoint

        self.patch_embed = PatchEmbed(sides, patch_size, in_chans, embed_dim)
        grid = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed: nn.Parameter | None = None
        if use_ape:
            self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, embed_dim))
        self.rel_pos_bias = RelativePositionBias(grid, num_heads) if use_shared_rpb else None
        self.pos_drop = nn.Dropout(drop_rate)

        self.blocks = nn.ModuleList()
        for rate in drop_path_rates(drop_path_rate, depth):
            own_grid = grid if use_rpb else None
            attention = Attention(embed_dim, num_heads, qkv_bias, drop_rate, own_grid)
            block = ViTBlock(embed_dim, attention, mlp_ratio, drop_rate, rate, init_values)
            self.blocks.append(block)
        self.norm = nn.Identity() if use_mean_pooling else nn.LayerNorm(embed_dim, eps=_EPS)
        # Only a classifier pools; a parameter without a gradient would stop DDP.
        pools = use_mean_pooling and not use_mask_token
        self.fc_norm = nn.LayerNorm(embed_dim, eps=_EPS) if pools else None
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else None
        # Normals of std 0.02 are cut at 1 std in pre-training, at 100 in fine-tuning, as published.
        self._init_weights(cut=0.02 if use_mask_token else 2.0)

    def _init_weights(self, cut: float) -> None:
        self.apply(lambda module: init_linear(module, cut))
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]  # this one has a bias
        trunc_normal_(self.patch_embed.proj.weight, std=0.02, a=-cut, b=cut)
        for name in ("cls_token", "mask_token", "pos_embed"):
            token = getattr(self, name, None)
            if token is not None:
                trunc_normal_(token, std=0.02, a=-cut, b=cut)
        with torch.no_grad():
            block: Any
            for depth, block in enumerate(self.blocks, start=1):
                block.attn.proj.weight.div_((2 * depth) ** 0.5)
                block.mlp.fc2.weight.div_((2 * depth) ** 0.5)
            if self.head is not None:
                self.head.weight.mul_(0.001)
                self.head.bias.mul_(0.001)

    def _encode(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """All tokens after the last block and `norm`, CLS first: (B, 1 + L, C)."""
        tokens = self.patch_embed(image)
        if mask is not None:
            tokens = hide_tokens(tokens, self.mask_token, mask)
        cls_token = self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        tokens = torch.cat((cls_token, tokens), dim=1)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        tokens = self.pos_drop(tokens)
        for block, bias in zip(self.blocks, self._shared_biases(tokens), strict=True):
            recompute = self.use_checkpoint and self.training
            tokens = run_block(block, tokens, bias, recompute=recompute)
        return self.norm(tokens)

    def _shared_biases(self, tokens: Tensor) -> Sequence[Tensor | None]:
        """The shared position bias for each block, (1, heads, L, L), as attention takes it."""
        if self.rel_pos_bias is None:
            return [None] * self.num_layers
        bias = aligned_bias(self.rel_pos_bias().unsqueeze(0).to(compute_dtype(tokens)))
        # One view for each block: their gradients are summed together, and rounded only then.
        return bias.expand(self.num_layers, 1, -1, -1, -1).unbind()

    def forward_features(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, num_features, H/patch, W/patch), without CLS.

        Patches where `mask` (B, H/patch, W/patch) is True are hidden from the encoder.
        """
        tokens = self._encode(image, mask)[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, self.patch_embed.grid)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes); without a head, pooled features."""
        tokens = self._encode(image, mask=None)
        pooled = tokens[:, 0] if self.fc_norm is None else self.fc_norm(tokens[:, 1:].mean(dim=1))
        return pooled if self.head is None else self.head(pooled)

    def layer_of(self, name: str) -> int:
        """Layer id: 0 of stem and tokens, i + 1 of block i, n + 1 of all else."""
        part, *rest = name.split(".")
        if part in ("patch_embed", "cls_token", "mask_token", "pos_embed"):
            return 0
        return int(rest[0]) + 1 if part == "blocks" else self.num_layers + 1

    def adapt_weights(self, weights: dict[str, Tensor], content: object) -> Adapted:
        """Copy a shared position bias to blocks with their own; resize positions to this grid."""
        tables = [name for name in self.state_dict() if name.endswith(TABLE)]
        shared = f"rel_pos_bias.{TABLE}"
        if shared in weights and tables and shared not in tables:
            table = weights.pop(shared)
            weights.update({name: table for name in tables if name not in weights})
        aspect = image_aspect(content)
        resized = resize_tables(weights, self, aspect)
        return Adapted(resized + resize_embedding(weights, "pos_embed", self, aspect, num_kept=1))

    def no_weight_decay(self, name: str) -> bool:
        """Whether it is the CLS token or the absolute position embedding."""
        return name in ("cls_token", "pos_embed")
