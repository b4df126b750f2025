"""Choose the device of a run and its precision."""

import contextlib
import os
import platform
from pathlib import Path

import torch

from utils.launch import read_launch
from utils.memory import keep_freed_memory

_CHOSEN = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # by whoever starts a process
PRECISIONS = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def prepare_process() -> None:
    """Set how this process computes on CPUs, before torch makes tensors and starts threads.

    Freed memory is kept. Numbers below 1e-38 become 0: products with them take a hundred times as
    long, and masked scores of attention have many. Threads do as the one that started them.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def choose_device(wanted: str) -> torch.device:
    """`auto`: this process's GPU, else the CPU; ValueError where the wanted GPU is missing."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("DEVICE is cuda, but torch finds no CUDA GPU here; use --device cpu")
    return torch.device("cuda", own_gpu(torch.cuda.device_count()))


def use_device(device: torch.device, *, tf32: bool = False, deterministic: bool = False) -> None:
    """Make a device this process's own, and set how it computes; call it before a group starts.

    `tf32` rounds factors of float32 products and convolutions on GPUs to 10 bits. `deterministic`
    has each operation sum in a fixed order, and raise RuntimeError where it cannot.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic  # try all kernels of a convolution
    torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        if deterministic:  # read when cuBLAS starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)


def own_gpu(visible: int) -> int:
    """The index of this process's GPU among the visible ones of its machine."""
    launch = read_launch()
    if launch is None:
        return 0
    if visible == 1 and any(os.environ.get(name, "all") not in ("", "all") for name in _CHOSEN):
        return 0  # all that srun --gpus-per-task or a container shows this process
    if launch.local_rank is None and launch.size > 1:
        raise ValueError(
            f"this is process {launch.rank} of {launch.size}, but nothing tells which of the "
            f"{visible} GPU(s) is its own: set LOCAL_RANK, its number on this machine, or start "
            "all processes with torchrun or srun"
        )
    local_rank = launch.local_rank or 0
    if local_rank >= visible:
        raise ValueError(
            f"process {local_rank} of this machine has no GPU: {visible} are visible; start as "
            "many processes as GPUs (torchrun --nproc_per_node, srun --ntasks-per-node)"
        )
    return local_rank


def hardware_of(device: torch.device) -> dict[str, str]:
    """The model of a device; results of different models may differ in their last digits."""
    if device.type == "cuda":
        return {"the GPU": torch.cuda.get_device_name(device)}
    return {"the CPU": f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"}


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where it is native, else float16 on GPUs and float32 on CPUs."""
    if wanted == "float16" and device.type != "cuda":
        raise ValueError("a precision is float16, which needs a CUDA GPU: choose bfloat16")
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
