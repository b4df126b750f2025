"""What several encoders share: patch embedding, mask token, attention, MLP."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
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


def project_qkv(
    tokens: Tensor, weight: Tensor, q_bias: Tensor | None, v_bias: Tensor | None, num_heads: int
) -> Tensor:
    """Queries, keys and values; keys have no bias: (B, L, C) -> (B, L, 3, heads, d)."""
    bias = None
    if q_bias is not None and v_bias is not None:
        bias = torch.cat((q_bias, torch.zeros_like(v_bias), v_bias))
    return F.linear(tokens, weight, bias).unflatten(2, (3, num_heads, -1))


def attend(qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Multi-head attention, softmax(q k^T * scale + bias) v: (B, L, 3, heads, d) -> (B, L, C).

    `bias` (G, heads, L, L) repeats over the batch, B a multiple of G. Half precision is safe: the
    softmax subtracts the maximum and works in float32 inside.
    """
    bias = None if bias is None else bias.to(qkv.dtype)
    if qkv.is_cuda or (bias is None and qkv.dtype == torch.float32):
        return fused_attention(qkv, bias, scale)
    if torch.compiler.is_compiling():
        return plain_attention(qkv, bias, scale)
    mixed: Tensor = ChunkedAttention.apply(qkv, bias, scale)
    return mixed


def fused_attention(qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """`attend` by torch's fused kernel: on GPUs, and on CPUs where no bias needs a gradient.

    On CPUs it is slower than plain products in bfloat16.
    """
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
    if bias is not None and len(bias) > 1:
        bias = bias.repeat(len(query) // len(bias), 1, 1, 1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def plain_attention(qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """`attend` in plain operations, for torch.compile, which fuses them."""
    query, key, value, offset = _centred_by_head(qkv)
    scores = (query @ key.transpose(1, 2)) * scale
    if bias is not None:
        scores = (scores.view(-1, *bias.shape) + bias).flatten(0, 2)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    mixed = scores.softmax(dim=-1, dtype=dtype).to(qkv.dtype) @ value
    mixed = mixed if offset is None else offset + mixed
    return mixed.unflatten(0, (-1, qkv.shape[3])).transpose(1, 2).flatten(2)


class ChunkedAttention(torch.autograd.Function):
    """`attend` for CPUs: a few samples at a time, so that their scores stay in the cache.

    The backward pass computes the scores again instead of keeping them, and writes the gradients
    in the layout of qkv. torch's fused kernel for CPUs has no gradient for the bias.
    """

    CHUNK = 2**19  # scores at a time

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """Save the inputs only."""
        ctx.save_for_backward(qkv, bias)
        ctx.scale = scale
        batch, length, _, heads, width = qkv.shape
        mixed = qkv.new_empty(batch, length, heads, width)
        for chunk in _chunks(qkv, bias):
            query, key, value, offset = _centred_by_head(qkv[chunk])
            share = _attention_shares(query, key, bias, scale).to(qkv.dtype)
            result = (share @ value) if offset is None else offset + share @ value
            mixed[chunk] = result.unflatten(0, (-1, heads)).transpose(1, 2)
        return mixed.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Gradients of qkv and, summed over the batch, of the bias; sums in float32 at least."""
        qkv, bias = ctx.saved_tensors
        heads = qkv.shape[3]
        grad = grad.view(*qkv.shape[:2], 1, heads, -1)
        grad_qkv = torch.empty_like(qkv)
        sum_dtype = torch.promote_types(qkv.dtype, torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=sum_dtype)
        for chunk in _chunks(qkv, bias):
            query, key, value, _ = _centred_by_head(qkv[chunk])
            (grad_mixed,) = _by_head(grad[chunk])
            share = _attention_shares(query, key, bias, ctx.scale)
            grad_value = share.to(qkv.dtype).transpose(1, 2) @ grad_mixed
            grad_score = (grad_mixed @ value.transpose(1, 2)).to(sum_dtype).mul_(share)
            grad_score.addcmul_(share, grad_score.sum(dim=-1, keepdim=True), value=-1)
            if bias is not None and grad_bias is not None:
                grad_bias += grad_score.view(-1, *bias.shape).sum(0)
            grad_score = grad_score.mul_(ctx.scale).to(qkv.dtype)
            grads = (grad_score @ key, grad_score.transpose(1, 2) @ query, grad_value)
            grad_qkv[chunk] = torch.stack(grads).unflatten(1, (-1, heads)).permute(1, 3, 0, 2, 4)
        return grad_qkv, None if grad_bias is None else grad_bias.to(bias.dtype), None


def _chunks(qkv: Tensor, bias: Tensor | None) -> list[slice]:
    """Slices of the batch, of whole groups of the bias."""
    batch, length, _, heads, _ = qkv.shape
    groups = 1 if bias is None else len(bias)
    size = max(ChunkedAttention.CHUNK // (heads * length**2 * groups), 1) * groups
    return [slice(start, start + size) for start in range(0, batch, size)]


def _by_head(packed: Tensor) -> tuple[Tensor, ...]:
    """(B, L, n, heads, d) -> n contiguous tensors (B * heads, L, d)."""
    return packed.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous().unbind()


def _centred_by_head(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Query, key and value, each (B * heads, L, d), and what was taken off every value.

    Attention does not change when all keys of a head move together, and moves with its values. In
    half precision both are moved so that their mean over the tokens is 0: otherwise what they
    share, which cancels out of the gradient, leaves rounding errors that can outgrow it.
    """
    query, key, value = _by_head(qkv)
    if qkv.dtype.itemsize > 2:
        return query, key, value, None
    offset = value.mean(dim=1, keepdim=True)
    return query, key - key.mean(dim=1, keepdim=True), value - offset, offset


def _attention_shares(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scores, in float32 at least: (B * heads, L, d) -> (B * heads, L, L)."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    if bias is None:
        return (query @ key.transpose(1, 2)).mul_(scale).softmax(dim=-1, dtype=dtype)
    groups, heads = bias.shape[:2]
    scores = bias.repeat(len(query) // (groups * heads), 1, 1, 1).flatten(0, 1)
    return scores.baddbmm_(query, key.transpose(1, 2), alpha=scale).softmax(dim=-1, dtype=dtype)


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
