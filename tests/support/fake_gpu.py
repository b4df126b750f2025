"""A GPU that is not there: shapes, types and devices without numbers, and no waiting for it."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
_COPIES = {"aten::_to_copy", "aten::copy_"}
_SIZES = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}


class Waits(TorchDispatchMode):
    """AssertionError where the host would wait for a GPU: for a number, a size, or a copy.

    Fake tensors refuse only what needs a number at once; `.cpu()`, indices on the CPU and copies
    from memory that is not pinned pass them.
    """

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator."""
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(result)
        name = operator.name().partition(".")[0]
        # To other operators one number on the CPU is an argument.
        read = [tensor for tensor in given if tensor.ndim or name in _COPIES]
        devices = {tensor.device.type for tensor in (*read, *made)}
        waits = name in _SIZES and "cuda" in devices
        to_gpu = all(tensor.is_cuda for tensor in made)
        copies = len(devices) > 1 and not (to_gpu and kwargs.get("non_blocking"))
        if waits or copies:
            raise AssertionError(f"{operator} makes the host wait: {sorted(devices)}")
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Make tensors on `GPU` that hold no numbers; autocast works there, the backward pass does not.

    Models are to be built there: `with GPU: ...`.
    """
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        FakeTensorMode(),
    ):
        yield


class Attentions(TorchFunctionMode):
    """Collects what reaches torch's fused attention: query, key, value and mask of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self.calls.append((*args[:3], kwargs.get("attn_mask")))
        return function(*args, **kwargs)
