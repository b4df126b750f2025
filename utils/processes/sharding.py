"""Models larger than one device: weights, gradients and optimizer divided over the processes."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def shard(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Divide the parameters over all processes and move them to `device`, in place.

    A block's are gathered when it computes and given up afterwards; what lies outside of blocks is
    one group. They are gathered in float32 and autocast rounds them where it would without
    sharding, so numbers stay those of DistributedDataParallel.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (*blocks, model):
        sharded = fully_shard(module, mesh=mesh)
        if device.type == "cpu":  # older gloo adds up where it is to average, and says nothing
            sharded.set_force_sum_reduction_for_comms(True)
    if hasattr(model, "reconstruct"):
        register_fsdp_forward_method(model, "reconstruct")


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called: all processes must then compute together."""
    return isinstance(model, FSDPModule)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it unless that is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mixed_precision(model: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`; nothing for float32.

    It keeps the weights that it has rounded until it ends, except those of a sharded model, which
    would add up to a whole one.
    """
    cache, wanted = not is_sharded(model), dtype != torch.float32
    return torch.autocast(device.type, dtype, enabled=wanted, cache_enabled=cache)


def synchronize_gradients(model: nn.Module, wanted: bool) -> None:
    """Average the gradients of a sharded model in the next backward pass, or only add them up."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale gradients down to a norm of at most `limit`; the norm before, over all processes."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
