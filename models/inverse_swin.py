"""Heads made of Swin's blocks: its stages from last to first, each of twice the resolution.

The paper (section 4.1.2) gives their sizes, not their architecture; this one has the published
numbers of parameters.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.decoders import pointwise
from models.layers import init_linear
from models.swin_hierarchy import SwinStage
from models.swin_transformer import SwinBlock, WindowAttention
from models.windows import Grid, shrunk_window
from utils.messages import one_of

_LAST = 4  # by how much the last expansion enlarges, as Swin's patches have 4 pixels a side
_WINDOWS = (7, 6, 5, 4)  # sides of windows, in the order in which one that fits the map is taken


class PatchExpanding(nn.Module):
    """Turn a token into `factor` x `factor` ones: (B, L, dim) -> (B, L * factor^2, width)."""

    def __init__(self, dim: int, width: int, factor: int, grid: Grid) -> None:
        super().__init__()
        self.factor, self.grid = factor, grid
        self.expansion = nn.Linear(dim, factor**2 * width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Expand each token, and normalize."""
        cells = self.expansion(tokens).unflatten(2, (self.factor, self.factor, -1))
        cells = cells.unflatten(1, self.grid)  # (B, h, w, factor, factor, width)
        return self.norm(cells.transpose(2, 3).flatten(1, 4))


class InverseSwin(nn.Module):
    """Swin's stages from last to first: (B, num_features, h, w) -> (B, out_chans, h*stride, ...).

    `depths` and `num_heads` are Swin's, of the first stage first. A stride below that of all stages
    leaves out the widest ones. ValueError for a stride that no number of stages has.
    """

    def __init__(
        self,
        num_features: int,
        stride: int,
        out_chans: int,
        grid: Grid,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
    ) -> None:
        super().__init__()
        strides = [_LAST * 2**stage for stage in range(len(depths))]
        if stride not in strides:
            raise ValueError(
                "MODEL.SIMMIM.DECODER inverse_swin_tiny and inverse_swin_base enlarge features by "
                f"{one_of(strides)}, and here {stride} pixel(s) of the target lie along the side "
                "of a feature: choose another MODEL.SIMMIM.TARGET_SHRINK (of tokens PATCH_SIZE), "
                "or the head linear or mlp"
            )
        stages = range(strides.index(stride), -1, -1)
        self.embed = nn.Linear(num_features, embed_dim * 2 ** stages[0])
        self.stages, self.expansions = nn.ModuleList(), nn.ModuleList()
        for stage in stages:
            dim, side = embed_dim * 2**stage, fitting_window(grid)
            blocks = [
                SwinBlock(dim, _attention(dim, num_heads[stage], grid, side), 4.0, 0.0, 0.0)
                for _ in range(depths[stage])
            ]
            factor, width = (2, dim // 2) if stage else (_LAST, dim)
            self.stages.append(SwinStage(grid, side, blocks, merging=None))
            self.expansions.append(PatchExpanding(dim, width, factor, grid))
            grid = grid[0] * factor, grid[1] * factor
        self.size = grid
        self.project = pointwise(embed_dim, out_chans)
        self.apply(init_linear)

    def forward(self, features: Tensor) -> Tensor:
        """Predict the target from the features."""
        tokens = self.embed(features.flatten(2).transpose(1, 2))
        for stage, expand in zip(self.stages, self.expansions, strict=True):
            tokens = expand(stage(tokens))
        return self.project(tokens.transpose(1, 2).unflatten(2, self.size))


def inverse_swin_tiny(num_features: int, stride: int, out_chans: int, grid: Grid) -> InverseSwin:
    """The inverse of Swin-T."""
    sizes = dict(depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    return InverseSwin(num_features, stride, out_chans, grid, embed_dim=96, **sizes)


def inverse_swin_base(num_features: int, stride: int, out_chans: int, grid: Grid) -> InverseSwin:
    """The inverse of Swin-B."""
    sizes = dict(depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
    return InverseSwin(num_features, stride, out_chans, grid, embed_dim=128, **sizes)


def fitting_window(grid: Grid) -> int:
    """The side of windows that divide a feature map; where none does, the map is padded."""
    fits = (side for side in _WINDOWS if grid[0] % side == grid[1] % side == 0)
    return next(fits, _WINDOWS[0])


def _attention(dim: int, num_heads: int, grid: Grid, side: int) -> WindowAttention:
    window = shrunk_window(grid, side)
    return WindowAttention(dim, window, num_heads, qkv_bias=True, qk_scale=None, drop=0.0)
