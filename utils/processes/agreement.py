"""Compare in a group what must be equal in all its processes: facts, and replicas of weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed

from utils.digest import digest_of
from utils.processes.comparison import differences_in, disagreement, ranks_in_words
from utils.processes.group import barrier, gather_over_processes, world_size

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def require_agreement(facts: Mapping[str, str]) -> None:
    """ValueError in all processes where one holds other facts; call it in all of them.

    It names what differs, with the values of process 0 and of the first that differs.
    """
    if world_size() == 1:
        return
    told: list[Mapping[str, str]] = [{}] * world_size()
    distributed.all_gather_object(told, dict(facts))
    if differences := differences_in(told):
        barrier()  # no process ends before all of them know
        raise disagreement(differences)


def bits_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of the bits of each tensor, read as integers: int64 (tensors,), on their device."""
    parts = (torch.view_as_real(each) if each.is_complex() else each for each in tensors)
    whole = (tensor.detach().view(_BITS[tensor.element_size()]) for tensor in parts)
    return torch.stack([tensor.sum(dtype=torch.int64) for tensor in whole])


def digest_of_bits(tensors: Iterable[Tensor]) -> str:
    """16 hex digits that tell weights apart, also those that differ in one bit."""
    return digest_of(bits_of(tensors).cpu().numpy())


def parted_replicas(tensors: Iterable[Tensor]) -> str:
    """Words for the processes whose tensors differ from those of process 0; empty where none does.

    Call it in all processes. It reads the tensors once and exchanges one number.
    """
    if world_size() == 1:
        return ""
    sums = bits_of(tensors)
    places = torch.arange(1, len(sums) + 1, device=sums.device)
    told = gather_over_processes((sums * places).sum()[None])[:, 0].tolist()
    others = [rank for rank, value in enumerate(told) if value != told[0]]
    return f"{ranks_in_words(others)} of {len(told)}" if others else ""
