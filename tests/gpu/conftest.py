"""The device of these tests, and the settings that each begins with."""

import gc
from collections.abc import Iterator

import pytest
import torch

from tests.support.accelerator import tested_device, why_missing
from utils.device import choose_precision, use_device


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The tested device with a run's default settings: float32 products in float32."""
    if missing := why_missing():
        pytest.skip(missing)
    device = tested_device()
    use_device(device)
    yield device
    use_device(device)
    if device.type == "cuda":
        gc.collect()  # what a test leaves would count for the next one's memory
        torch.cuda.empty_cache()


@pytest.fixture
def half(device: torch.device) -> torch.dtype:
    """bfloat16; float16 on GPUs before Ampere, whose fused attention knows no other."""
    return choose_precision("auto" if device.type == "cuda" else "bfloat16", device)


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The tested device, where it is a GPU."""
    if device.type != "cuda":
        pytest.skip("a CPU cannot show it")
    return device
