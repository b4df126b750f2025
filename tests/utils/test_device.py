"""Device and precision choices."""

import pytest
import torch

from utils.device import choose_device, choose_precision

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_a_cpu_computes_in_bfloat16_or_float32_and_never_in_float16() -> None:
    assert choose_precision("auto", CPU) in (torch.bfloat16, torch.float32)
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    assert choose_precision("float32", CPU) == torch.float32
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        choose_precision("float16", CPU)
