"""What several encoders share: patch embedding, mask token, windows, relative positions, MLP."""

from collections.abc import Callable

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class PatchEmbed(nn.Module):
    """Cut (B, C, H, W) into patches and embed each: (B, H/p * W/p, embed_dim), row by row."""

    def __init__(
        self, image_size: int, patch_size: int, in_chans: int, embed_dim: int, norm: bool = False
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid_size = image_size // patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm: nn.Module = nn.LayerNorm(embed_dim) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches; ValueError for an image of another size or channel count."""
        expected = (self.proj.in_channels, self.image_size, self.image_size)
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


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax(q k^T * scale + bias) v on (B, heads, L, d).

    `bias` (G, heads, L, L) repeats over the batch, B a multiple of G. Half precision is safe: the
    softmax subtracts the maximum and works in float32 inside.
    """
    bias = None if bias is None else bias.to(query.dtype)
    if query.is_cuda:
        return fused_attention(query, key, value, bias, scale)
    # On CPUs plain products beat the fused kernel, which falls back when the bias needs gradients.
    scores = (query * scale) @ key.transpose(-2, -1)
    if bias is not None:
        scores.view(-1, *bias.shape).add_(bias)
    return scores.softmax(dim=-1) @ value


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """`attend` by torch's fused kernel, which keeps no scores for the backward pass."""
    if bias is not None and len(bias) > 1:
        bias = bias.repeat(len(query) // len(bias), 1, 1, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def gather_position_bias(table: Tensor, index: Tensor) -> Tensor:
    """Table (offsets, heads) and its row for each pair of positions (L, L) -> (heads, L, L)."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


def window_partition(feature_map: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * H/window * W/window, window^2, C)."""
    batch, height, width, channels = feature_map.shape
    grid = feature_map.view(batch, height // window, window, width // window, window, channels)
    return grid.transpose(2, 3).reshape(-1, window * window, channels)


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `window_partition`: -> (B, height, width, C)."""
    grid = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return grid.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def relative_position_index(height: int, width: int) -> Tensor:
    """Row of the bias table for each pair of positions (L, L); (2 height - 1)(2 width - 1) rows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    row_offset = rows[:, None] - rows[None, :] + height - 1
    column_offset = columns[:, None] - columns[None, :] + width - 1
    return row_offset * (2 * width - 1) + column_offset


def run_block(block: Callable[..., Tensor], *inputs: Tensor | None, recompute: bool) -> Tensor:
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
