"""The hierarchy that both versions of Swin share: stem, stages, norm, head."""

from collections.abc import Callable, Sequence

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from models.layers import PatchEmbed, drop_path_rates, hide_tokens, require_size, run_block
from models.origin import image_aspect
from models.position_bias import resize_embedding
from models.windows import Grid, Windows, halved, join_neighbours, shrunk_window
from utils.messages import require_divisible, shown

# (stage, block in the stage, width, heads, window, drop-path rate) -> block
MakeBlock = Callable[[int, int, int, int, Grid, float], nn.Module]


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbouring tokens and reduce them: (B, L, C) -> (B, L/4, 2C).

    Swin normalizes before the reduction, Swin V2 (`merge_then_norm`) after it.
    """

    def __init__(self, dim: int, grid: Grid, merge_then_norm: bool) -> None:
        super().__init__()
        self.grid, self.merge_then_norm = grid, merge_then_norm
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim if merge_then_norm else 4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge each four tokens into one."""
        joined = join_neighbours(tokens, self.grid)
        if self.merge_then_norm:
            return self.norm(self.reduction(joined))
        return self.reduction(self.norm(joined))


class SwinStage(nn.Module):
    """Blocks of one resolution, every second with shifted windows, then patch merging."""

    def __init__(
        self, grid: Grid, window: int, blocks: Sequence[nn.Module], merging: PatchMerging | None
    ) -> None:
        super().__init__()
        self.windows = Windows(grid, window, shifted=False)
        self.shifted_windows = Windows(grid, window, shifted=True)
        self.blocks = nn.ModuleList(blocks)
        self.downsample = merging

    def forward(self, tokens: Tensor, recompute: bool = False) -> Tensor:
        """(B, L, C) -> (B, L/4, 2C), or (B, L, C) in the last stage."""
        for index, block in enumerate(self.blocks):
            windows = self.shifted_windows if index % 2 else self.windows
            tokens = run_block(block, tokens, windows, recompute=recompute)
        return tokens if self.downsample is None else self.downsample(tokens)


class SwinHierarchy(nn.Module):
    """A Swin of any number of stages; classifies images, or encodes them for SimMIM.

    `image_size` is a side or (height, width); `num_classes` 0 leaves the head out;
    `use_mask_token` adds the token that hides patches; `section` prefixes keys in errors.
    """

    def __init__(
        self,
        make_block: MakeBlock,
        section: str,
        *,
        merge_then_norm: bool,
        image_size: int | Grid = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        ape: bool = False,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        num_classes: int = 1000,
        use_mask_token: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        sides: Grid = to_2tuple(image_size)
        _check_heads(embed_dim, depths, num_heads, section)
        require_size(sides, patch_size, len(depths), f"{section}.PATCH_SIZE")
        self.in_chans, self.patch_size, self.depths = in_chans, patch_size, list(depths)
        self.stride = patch_size * 2 ** (len(depths) - 1)
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.num_layers = sum(depths)
        self.use_checkpoint = use_checkpoint

        self.patch_embed = PatchEmbed(sides, patch_size, in_chans, embed_dim, norm=patch_norm)
        grid = self.patch_embed.grid
        self.absolute_pos_embed: nn.Parameter | None = None
        if ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dim))
            trunc_normal_(self.absolute_pos_embed, std=0.02)
        if use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            trunc_normal_(self.mask_token, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, self.num_layers))
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            grid = halved(grid) if stage else grid
            dim, window = embed_dim * 2**stage, shrunk_window(grid, window_size)
            blocks = [
                make_block(stage, index, dim, heads, window, next(rates)) for index in range(depth)
            ]
            is_last = stage == len(depths) - 1
            merging = None if is_last else PatchMerging(dim, grid, merge_then_norm)
            self.layers.append(SwinStage(grid, window_size, blocks, merging))
        self.last_grid = grid
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else None

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, first to last."""
        return [block for layer in self.layers for block in layer.blocks]  # type: ignore[union-attr]  # torch types modules of a list loosely

    def forward_features(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, num_features, H/stride, W/stride), rounded up.

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
        return self.norm(tokens).transpose(1, 2).unflatten(2, self.last_grid)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes); without a head, pooled features."""
        pooled = self.forward_features(image).flatten(2).mean(dim=2)
        return pooled if self.head is None else self.head(pooled)

    def layer_of(self, name: str) -> int:
        """Layer id: 0 of the stem, i + 1 of block i and the merging after it, n + 1 of all else."""
        part, *rest = name.split(".")
        if part in ("patch_embed", "mask_token", "absolute_pos_embed"):
            return 0
        if part != "layers":
            return self.num_layers + 1
        stage = int(rest[0])
        block = int(rest[2]) if rest[1] == "blocks" else self.depths[stage] - 1
        return sum(self.depths[:stage]) + block + 1

    def resize_positions(self, weights: dict[str, Tensor], content: object) -> list[str]:
        """Resize the absolute position embedding in `weights` to this grid; versions resize more.

        Return the names of what was resized.
        """
        aspect = image_aspect(content)
        return resize_embedding(weights, "absolute_pos_embed", self, aspect, num_kept=0)

    def no_weight_decay(self, name: str) -> bool:
        """Whether it is the absolute position embedding or mask token; versions add their own."""
        return name in ("absolute_pos_embed", "mask_token")


def _check_heads(
    embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], section: str
) -> None:
    if len(depths) != len(num_heads):
        raise ValueError(
            f"{section}: DEPTHS {shown(list(depths))} and NUM_HEADS {shown(list(num_heads))} "
            "differ in length"
        )
    for stage, heads in enumerate(num_heads):
        width = embed_dim * 2**stage
        require_divisible(width, heads, f"the width of stage {stage}", f"{section}.NUM_HEADS")
