"""The process group of a run, and the collective operations on it."""

import contextlib
import datetime
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from utils.device import hardware_of
from utils.files import DamagedError, InUseError
from utils.launch import read_launch
from utils.messages import reason_of
from utils.processes.interfaces import VARIABLE
from utils.processes.rendezvous import Rendezvous
from utils.processes.sharding import is_sharded, synchronize_gradients
from utils.processes.signals import end_at_once

Result = TypeVar("Result")

_LONGEST_MESSAGE = 1000  # characters of an error that processes exchange

_meetings: list[Rendezvous] = []  # the rendezvous of this process's group, once it exists
_mixtures: list[str] = []  # words for the hardware that differs in this process's group


class CommonError(ValueError):
    """An error of process `rank` that all processes raise together, so that one may print it."""

    def __init__(self, message: str, rank: int, in_use: bool = False) -> None:
        super().__init__(message)
        self.rank = rank
        self.in_use = in_use  # it is an InUseError


def rank() -> int:
    """Index of this process; 0 without a launcher."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a launcher."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def start_process_group(
    device: torch.device, lost_after: float = 600.0, facts: Mapping[str, str] | None = None
) -> None:
    """Join the launcher's group, nccl on GPUs, gloo on CPUs; do nothing without a launcher.

    ValueError where the processes do not find each other within `lost_after` seconds, and in all of
    them where `facts` differ. Collectives time out 10 s later than that, so that the heartbeat
    first reports which process is missing.
    """
    launch = read_launch()
    if launch is None or not launch.joins or distributed.is_initialized():
        return
    begun = time.monotonic()
    timeout = datetime.timedelta(seconds=lost_after + 10)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        meeting = Rendezvous(launch, lost_after)
        mixture = meeting.agree(
            {"the kind of device": device.type, **(facts or {})}, hardware_of(device)
        )
        options: dict[str, Any] = {"rank": meeting.rank, "world_size": meeting.size}
        options |= {"device_id": device} if device.type == "cuda" else {}
        store = meeting.store("group")
        with _limited(lost_after + 11, launch.rank):
            distributed.init_process_group(backend, store=store, timeout=timeout, **options)
            barrier()
    except RuntimeError as error:
        raise ValueError(
            f"rank {launch.rank} could not join the other processes, tried for "
            f"{time.monotonic() - begun:.0f} s (TRAIN.LOST_AFTER: {lost_after:g}): "
            f"{' '.join(str(error).split())}"
        ) from None
    meeting.close()
    _meetings[:], _mixtures[:] = [meeting], [mixture]


@contextlib.contextmanager
def _limited(seconds: float, own_rank: int) -> Iterator[None]:
    """End the process after that time: gloo waits for ever for one that cannot reach it."""
    words = f"rank {own_rank}: error: the processes have formed no group within {seconds:g} s: see "
    words += f"the other ranks' errors; the interface is {os.environ.get(VARIABLE, 'unknown')}"
    timer = threading.Timer(seconds, end_at_once, (words, 2))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def mixed_hardware() -> str:
    """Words for devices that differ between processes; empty where all are of one model."""
    return "".join(_mixtures)


def shared_store(part: str) -> distributed.Store:
    """A store that all processes of the group can write to and read."""
    return _meetings[0].store(part)


def gloo_group() -> distributed.ProcessGroup:
    """A new gloo group of all processes, for the caller alone; call it in all of them."""
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)  # every process is in it
    return group


def barrier() -> None:
    """Wait for all processes."""
    if distributed.is_initialized():
        distributed.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor over all processes, in place."""
    values = sum_over_processes(values)
    values /= world_size()
    return values


def gather_over_processes(values: Tensor) -> Tensor:
    """Stack the tensors (n,) of all processes to (processes, n); call it in all of them."""
    rows = [torch.empty_like(values) for _ in range(world_size())]
    if world_size() > 1:
        distributed.all_gather(rows, values.contiguous())
        return torch.stack(rows)
    return values[None]


def largest_over_processes(value: int, device: torch.device) -> int:
    """The largest value over all processes; call it in all of them."""
    values = torch.tensor(value, device=device)
    if world_size() > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return int(values)


def any_process(value: bool) -> bool:
    """Whether `value` is true in any process; call it in all of them."""
    if world_size() == 1:
        return value
    return bool(largest_over_processes(value, torch.device(_device_of_group())))


def raise_everywhere(error: ValueError | None) -> None:
    """Raise one error in all processes if any has one; call it in all of them.

    A DamagedError comes first, then the lowest rank. A single process raises its error itself,
    several raise a DamagedError or a `CommonError` with the same message.
    """
    if world_size() == 1:
        if error is not None:
            raise error
        return
    told: list[tuple[bool, str, bool] | None] = [None] * world_size()
    line = " ".join(str(error).split())[:_LONGEST_MESSAGE] or type(error).__name__
    own = None
    if error is not None:
        own = isinstance(error, DamagedError), line, isinstance(error, InUseError)
    distributed.all_gather_object(told, own)
    found = [(not said[0], other, *said[1:]) for other, said in enumerate(told) if said]
    if found:
        whole, other, message, in_use = min(found)
        raise (CommonError(message, other, in_use) if whole else DamagedError(message)) from error


def together(what: str, act: Callable[[], Result]) -> Result:
    """Return `act()`; where it fails in any process, raise one ValueError in all of them.

    Call it in all processes. `what` begins the message for an OSError or MemoryError.
    """
    error: ValueError | None = None
    try:
        result = act()
    except ValueError as caught:
        error = caught
    except (OSError, MemoryError) as caught:
        error = ValueError(f"{what}: {reason_of(caught)}")
    raise_everywhere(error)
    return result


def _device_of_group() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def combine_over_processes(marks: Tensor, device: torch.device) -> Tensor:
    """The elementwise "or" of the processes' `marks`, bool on the CPU; call it in all of them."""
    values = marks.to(device, torch.uint8, copy=True)
    if world_size() > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values.cpu().bool()


def equal_in_all_processes(value: int, device: torch.device) -> bool:
    """Whether every process holds the same number; call it in all of them."""
    largest, smallest = (largest_over_processes(sign * value, device) for sign in (1, -1))
    return largest == -smallest


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model so that gradients are averaged over processes.

    A sharded model averages them itself, and a run without a process group need not.
    """
    if not distributed.is_initialized() or is_sharded(model):
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    # Buffers are constants, or statistics that `RunningStatistics` averages. torch 2.15 gave this
    # option another name.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(
        model, device_ids=device_ids, gradient_as_bucket_view=True, **options
    )


def synchronized_if(last: bool, model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Average gradients in this backward pass only if it is the `last` of an update."""
    synchronize_gradients(model, last)
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = model.no_sync()
    return context
