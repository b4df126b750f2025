"""Parameters of a recipe's model, its operations, and its memory: counted, not measured.

The model runs with fake tensors, which have shapes but no values, and need no GPU to be on one.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from models import build_classifier, build_pretrain_model
from models.simmim import Encoder
from utils.compilation import require_blocks
from utils.config import is_finetuning
from utils.processes.sharding import mixed_precision

FLOAT32 = 4  # bytes
GPU = torch.device("cuda", 0)  # of fake tensors


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for backward: `fixed`, and `per_image` for each image."""

    fixed: int
    per_image: int

    def of(self, batch: int) -> int:
        """Bytes for a batch."""
        return self.fixed + batch * self.per_image


@dataclass(frozen=True)
class Needs:
    """Parameters of a model, operations of one image, and bytes of activations."""

    parameters: int
    outside_blocks: int
    largest_block: int
    operations: int  # forward; a multiplication and an addition are two
    kept: Activations
    recomputed: Activations


def _operations_of_baddbmm(
    added: torch.Size, one: torch.Size, other: torch.Size, **rest: object
) -> int:
    return int(2 * math.prod(one) * other[-1])


_OPERATIONS = {torch.ops.aten.baddbmm_: _operations_of_baddbmm}  # torch counts only baddbmm


def count_needs(cfg: CfgNode, dtype: torch.dtype) -> Needs:
    """Run the model of a configuration with fake tensors, and count its needs on a GPU."""
    with FakeTensorMode(), GPU:
        model, recomputing = (_on_gpu(build(cfg, recompute)) for recompute in (False, True))
        kept, of_one_block = count_activations(cfg, model, dtype)
        recomputed, _ = count_activations(cfg, recomputing, dtype)
    blocks = [_numel(block) for block in require_blocks(model, "tools.plan")]
    # Without sharding, autocast keeps the weights that it has rounded, recomputed or not.
    sharded = cfg.TRAIN.SHARDING == "full"
    fixed = recomputed.fixed + of_one_block.fixed if sharded else kept.fixed
    return Needs(
        parameters=_numel(model),
        outside_blocks=_numel(model) - sum(blocks),
        largest_block=max(blocks),
        operations=count_operations(cfg),
        kept=kept,
        recomputed=Activations(fixed, recomputed.per_image + of_one_block.per_image),
    )


def count_operations(cfg: CfgNode) -> int:
    """Operations of one image's forward pass; a multiplication and an addition are two."""
    counter = FlopCounterMode(display=False, custom_mapping=_OPERATIONS)
    with FakeTensorMode(), torch.no_grad(), counter:
        model: Any = build(cfg, recompute=False)
        model(*inputs_of(cfg, getattr(model, "encoder", model), 1))
    return int(counter.get_total_flops())


def count_parameters(cfg: CfgNode) -> int:
    """Parameters of the model of a stage."""
    with FakeTensorMode():
        return _numel(build(cfg, recompute=False))


def build(cfg: CfgNode, recompute: bool) -> nn.Module:
    """Build the model of a stage: a classifier if MODEL.NAME is finetune."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAIN.USE_CHECKPOINT = recompute
    if is_finetuning(cfg):
        return build_classifier(cfg, cfg.MODEL.NUM_CLASSES).train()
    return build_pretrain_model(cfg).train()


def _on_gpu(model: nn.Module) -> nn.Module:
    """Move buffers that were made from NumPy's arrays, on the CPU, to `GPU`."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(GPU))
    return model


def inputs_of(cfg: CfgNode, encoder: Encoder, batch: int) -> list[Tensor]:
    """Inputs of the model of a stage, without values."""
    height, width = to_2tuple(cfg.DATA.IMG_SIZE)
    image = torch.empty(batch, encoder.in_chans, height, width)
    if is_finetuning(cfg):
        return [image]
    patch = encoder.patch_size
    return [image, torch.empty(batch, height // patch, width // patch, dtype=torch.bool)]


def count_activations(
    cfg: CfgNode, model: Any, dtype: torch.dtype
) -> tuple[Activations, Activations]:
    """Activations of the model and of its largest block, from batches of two and of three."""
    encoder, blocks = getattr(model, "encoder", model), require_blocks(model, "tools.plan")
    two, three = (
        measure_activations(model, blocks, inputs_of(cfg, encoder, batch), dtype)
        for batch in (2, 3)
    )
    whole, block = (
        Activations(fixed=3 * low - 2 * high, per_image=high - low)
        for low, high in zip(two, three, strict=True)
    )
    return whole, block


def measure_activations(
    model: nn.Module, blocks: Iterable[nn.Module], inputs: list[Tensor], dtype: torch.dtype
) -> tuple[int, int]:
    """Bytes that one forward pass keeps, and bytes of the block that keeps most."""
    with count_saved(model) as saved, _precision_of(model, inputs[0].device, dtype):
        before: list[int] = []
        sizes: list[int] = []
        hooks = []
        for block in blocks:
            hooks += [
                block.register_forward_pre_hook(lambda *_: before.append(sum(saved.values()))),
                block.register_forward_hook(
                    lambda *_: sizes.append(sum(saved.values()) - before[-1])
                ),
            ]
        model(*inputs)
        for hook in hooks:
            hook.remove()
    return sum(saved.values()), max(sizes)


@contextmanager
def _precision_of(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """`mixed_precision` and, on GPUs, fused attention: torch has neither where no GPU is."""
    with mixed_precision(model, torch.device("cpu"), dtype):  # also the cache, the same for both
        if device.type == "cpu":
            yield
            return
        kind, before = device.type, torch.get_autocast_dtype(device.type)
        torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_enabled(kind, dtype != torch.float32)
        try:
            with _FusedAttention():
                yield
        finally:
            torch.set_autocast_enabled(kind, False)
            torch.set_autocast_dtype(kind, before)


class _FusedAttention(TorchFunctionMode):
    """Has torch's attention for GPUs save what its memory-efficient kernel saves."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch."""
        fused = function is F.scaled_dot_product_attention
        return (_save_as_fused if fused else function)(*args, **(kwargs or {}))


def _save_as_fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any
) -> Tensor:
    if query.ndim != 4 or rest.get("enable_gqa"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **rest)
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    mixed: Tensor = kernel(query, key, value, bias, True, scale=rest.get("scale"))[0]
    return mixed


@contextmanager
def count_saved(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves inside `with`, by address, without parameters."""
    own = [*model.parameters(), *model.buffers()]
    addresses = {tensor.untyped_storage()._cdata for tensor in own}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in addresses:
            saved[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_of(needs: Needs, gpus: int, sharded: bool) -> dict[str, int]:
    """Bytes on each GPU, independent of the batch, by kind."""
    share = gpus if sharded else 1
    kinds = {
        "weights": FLOAT32 * needs.parameters // share,
        "gradients": FLOAT32 * needs.parameters // share,
        "optimizer": 2 * FLOAT32 * needs.parameters // share,
    }
    if sharded:  # all outside of blocks, two blocks' weights, one block's gradients
        whole = 2 * needs.outside_blocks + 3 * needs.largest_block
        kinds["gathered weights and gradients"] = FLOAT32 * whole
    return kinds
