"""Models larger than one device: divide weights, gradients and optimizer over the processes."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def shard(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Divide the parameters over all processes and move them to `device`, in place.

    The parameters of a block are gathered when it computes and freed afterwards; all parameters
    outside of blocks form one group. They are gathered in float32, and autocast rounds them as
    without sharding, so results equal those of DistributedDataParallel.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (*blocks, model):
        sharded = fully_shard(module, mesh=mesh)
        if device.type == "cpu":  # older gloo silently sums instead of averaging
            sharded.set_force_sum_reduction_for_comms(True)
    if hasattr(model, "reconstruct"):
        register_fsdp_forward_method(model, "reconstruct")


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` divided the model, so that all processes must compute together."""
    return isinstance(model, FSDPModule)


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mixed_precision(model: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`; disabled for float32.

    It caches rounded weights until it ends, except those of a sharded model, where the cache would
    hold the whole model.
    """
    cache, wanted = not is_sharded(model), dtype != torch.float32
    return torch.autocast(device.type, dtype, enabled=wanted, cache_enabled=cache)


def synchronize_gradients(model: nn.Module, wanted: bool) -> None:
    """Average a sharded model's gradients in the next backward pass, or only accumulate them."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale gradients to a norm of at most `limit`; return the norm before, over all processes."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
