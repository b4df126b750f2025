"""Multi-head attention with a position bias, with one implementation per kind of device."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_ALIGNMENT = 8  # elements


def project_qkv(
    tokens: Tensor, weight: Tensor, q_bias: Tensor | None, v_bias: Tensor | None, num_heads: int
) -> Tensor:
    """Project to queries, keys (without bias) and values: (B, L, C) -> (B, L, 3, heads, d)."""
    bias = None
    if q_bias is not None and v_bias is not None:
        bias = torch.cat((q_bias, torch.zeros_like(v_bias), v_bias))
    return F.linear(tokens, weight, bias).unflatten(2, (3, num_heads, -1))


def attend(qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Multi-head attention, softmax(q k^T * scale + bias) v: (B, L, 3, heads, d) -> (B, L, C).

    `bias` (G, heads, L, L) repeats over the batch; B is a multiple of G. Half precision is safe:
    the softmax subtracts the maximum and works in float32.
    """
    bias = None if bias is None else bias.to(qkv.dtype)
    if qkv.is_cuda or (bias is None and qkv.dtype == torch.float32):
        return fused_attention(qkv, bias, scale)
    if torch.compiler.is_compiling():
        return plain_attention(qkv, bias, scale)
    mixed: Tensor = ChunkedAttention.apply(qkv, bias, scale)
    return mixed


def fused_attention(qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """`attend` by torch's fused kernel: on GPUs, and on CPUs in float32 without a bias.

    In bfloat16 on CPUs it is slower than plain matrix products.
    """
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
    if bias is not None:
        # The kernels repeat a bias over the whole batch, but not over every G-th sample of it.
        bias = aligned_bias(bias, len(query) // len(bias) if len(bias) > 1 else 1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def aligned_bias(bias: Tensor, repeats: int = 1) -> Tensor:
    """Repeat a bias (G, heads, L, L) along its first axis, and lay it out as fused kernels read it.

    On GPUs they take only a bias whose last axis is contiguous, and copy one whose rows do not
    begin at multiples of 8 elements, so rows are stored with padding. A bias that fits stays.
    """
    fits = bias.stride(-1) == 1 and not any(stride % _ALIGNMENT for stride in bias.stride()[:-1])
    if fits and repeats == 1:
        return bias
    length = bias.shape[-1]
    # Three axes: padding would keep the order in memory of four, which is that of the table.
    rows = F.pad(bias.flatten(0, 1), (0, -length % _ALIGNMENT)).contiguous()
    rows = rows.unflatten(0, bias.shape[:2])
    return (rows if repeats == 1 else rows.repeat(repeats, 1, 1, 1))[..., :length]


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which layers compute on a tensor's device: autocast's, else the tensor's."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


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

    The backward pass recomputes the scores instead of keeping them, and writes the gradients in
    the layout of qkv. torch's fused kernel for CPUs has no gradient for the bias.
    """

    CHUNK = 2**19  # scores at a time

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """Compute the result; save only the inputs for the backward pass."""
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
        """Gradients of qkv and, summed over the batch, of the bias; sums are float32 or wider."""
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
    """Slices of the batch whose sizes are multiples of the bias's G."""
    batch, length, _, heads, _ = qkv.shape
    groups = 1 if bias is None else len(bias)
    size = max(ChunkedAttention.CHUNK // (heads * length**2 * groups), 1) * groups
    return [slice(start, start + size) for start in range(0, batch, size)]


def _by_head(packed: Tensor) -> tuple[Tensor, ...]:
    """(B, L, n, heads, d) -> n contiguous tensors (B * heads, L, d)."""
    return packed.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous().unbind()


def _centred_by_head(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Query, key and value, each (B * heads, L, d), and the offset subtracted from every value.

    A constant added to all keys of a head does not change attention; one added to its values is
    added to the result. In half precision, both get mean 0 over the tokens (offset None otherwise):
    a common offset cancels in the gradient, but its rounding errors can exceed the gradient.
    """
    query, key, value = _by_head(qkv)
    if qkv.dtype.itemsize > 2:
        return query, key, value, None
    offset = value.mean(dim=1, keepdim=True)
    return query, key - key.mean(dim=1, keepdim=True), value - offset, offset


def _attention_shares(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scores, in float32 or wider: (B * heads, L, d) -> (B * heads, L, L)."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    if bias is None:
        return (query @ key.transpose(1, 2)).mul_(scale).softmax(dim=-1, dtype=dtype)
    groups, heads = bias.shape[:2]
    scores = bias.repeat(len(query) // (groups * heads), 1, 1, 1).flatten(0, 1)
    return scores.baddbmm_(query, key.transpose(1, 2), alpha=scale).softmax(dim=-1, dtype=dtype)
