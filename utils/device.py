"""Choose the device of a run and its precision."""

import os

import torch

PRECISIONS = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def choose_device(wanted: str) -> torch.device:
    """`auto`: this process's GPU, else the CPU; ValueError where the wanted GPU is missing."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("DEVICE is cuda, but torch finds no CUDA GPU here; use --device cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} are "
            "visible; start as many processes with --nproc_per_node"
        )
    return torch.device("cuda", local_rank)


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where it is native, else float16 on GPUs and float32 on CPUs."""
    if wanted == "float16" and device.type != "cuda":
        raise ValueError("TRAIN.PRECISION is float16, which needs a CUDA GPU; choose bfloat16")
    if wanted != "auto":
        return PRECISIONS[wanted]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    # Without these instructions bfloat16 is emulated and slower than float32.
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    native = any(getattr(torch.cpu, test, bool)() for test in tests)
    return torch.bfloat16 if native else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, for example "bfloat16"."""
    return str(dtype).removeprefix("torch.")
