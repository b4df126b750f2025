"""Time of an update by kind of operation, and the machine's speed of matrix products."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Kind of operation -> words in the names of its operators; the first match counts.
KINDS: dict[str, tuple[str, ...]] = {
    "compiled kernels": ("compiled", "cpp_fused", "triton", "inductor"),
    "fused attention": ("scaled_dot_product", "flash", "efficient_attention", "fmha"),
    "matrix products": ("mm", "matmul", "linear", "bmm", "dot", "mkldnn_rnn"),
    "convolutions": ("conv",),
    "normalization": ("layer_norm", "group_norm", "batch_norm"),
    "GELU": ("gelu",),
    "softmax": ("softmax",),
    "optimizer and clipping": ("adam", "foreach", "norm", "clip"),
    "copies, casts, gathers": (
        *("copy", "to_copy", "cat", "clone", "index", "gather", "roll", "fill", "zero", "flip"),
        *("empty", "memcpy", "memset", "contiguous", "stack", "pad", "select", "slice"),
    ),
    "elementwise, sums": (
        *("add", "mul", "div", "sub", "sum", "mean", "where", "abs", "neg", "pow", "sqrt"),
        *("exp", "log", "clamp", "bernoulli", "masked", "l1", "sgn", "sign", "lerp"),
    ),
}
OTHER = "other operators"
NO_OPERATOR = "outside of operators"  # Python; on a GPU also waiting for the host


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def breakdown(run: Callable[[], None], device: torch.device) -> tuple[dict[str, float], float]:
    """Shares of the time of `run` by kind of operation, largest first; they add up to 1.

    Also how many times as long `run` takes with the profiler as without.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plain = [_duration(run)]
    for _ in range(2):  # at first the profiler's own memory is new, and tensors move to new pages
        with _no_messages(), profile(activities=activities) as profiler:
            elapsed = _duration(run) * 1e6  # microseconds, as the profiler counts
        plain.append(_duration(run))
    times = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:  # a kernel counts for the operator that launched it
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            times[kind_of(event.key)] += spent
    whole = max(elapsed, sum(times.values()))
    times[NO_OPERATOR] = whole - sum(times.values())
    shares = {kind: spent / whole for kind, spent in times.items()}
    slower = elapsed / 1e6 / statistics.median(plain)
    return dict(sorted(shares.items(), key=lambda share: -share[1])), slower


def _duration(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def _no_messages() -> Iterator[None]:
    """Suppress the profiler's messages on standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def kind_of(operator: str) -> str:
    """The kind of an operator, by its name in the profiler."""
    name = operator.lower().removeprefix("aten::")
    return next((kind for kind, words in KINDS.items() if any(w in name for w in words)), OTHER)


def matmul_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations per second in products of large square matrices, the fastest of some trials."""
    side = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = [_seconds(lambda: one @ other, device) for _ in range(repeats + 2)]
    return 2 * side**3 / min(seconds)


def _seconds(call: Callable[[], object], device: torch.device, calls: int = 5) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls
