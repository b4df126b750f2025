"""Test a machine or a cluster for some minutes, before a run of days starts there.

python -m tools.selftest [--cfg FILE] [--data-path DIR] [--output DIR]
torchrun --nproc_per_node N -m tools.selftest [--cfg FILE] ...

Also below srun and mpirun. Each line is ok, slow (a run works, but waits) or wrong (it would end).
The exit status is 1 where something is wrong.
"""

import argparse
from pathlib import Path

from utils.config.arguments import make_parser, read_config, read_early
from utils.config.flags import UPDATE_FLAGS

_DRIVER = Path("/proc/driver/nvidia/version")
_OF_GPUS = "configs/swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep.yaml"
_OF_CPUS = "configs/demo/simmim_pretrain__swin_tiny__shapes64.yaml"


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    flags = ("--opts", "--data-path", "--output", *UPDATE_FLAGS)
    parser = make_parser("-m tools.selftest", __doc__, flags, recipe="[--cfg FILE]")
    recipe = Path(__file__).parents[1] / (_OF_GPUS if _DRIVER.exists() else _OF_CPUS)
    words = "recipe; by default Swin-B's on NVIDIA GPUs, else the demo's"
    parser.add_argument("--cfg", default=str(recipe), metavar="FILE", help=words)
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import contextlib
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import distributed
from yacs.config import CfgNode

from tools.measuring import host, needs
from tools.measuring.kernels import matmul_peak, synchronize
from tools.measuring.measure import WARM_UP
from tools.measuring.network import UTILIZATION, Assumed, Load, work_out
from tools.measuring.workloads import collect_pictures, training_loader, training_work
from utils.config import is_finetuning, with_options
from utils.device import choose_precision, cpu_name, dtype_name
from utils.messages import reason_of
from utils.processes.exit_status import run_program
from utils.processes.group import rank, start_process_group, world_size
from utils.processes.interfaces import VARIABLE
from utils.processes.loading import shortage
from utils.training.run import run_folder, set_up_device

_LOST_AFTER = 120.0  # seconds without an answer of another process
_LARGEST_FILE, _LARGEST_MESSAGE = 10**9, 2**28  # bytes
_SAVED_WITHIN = 60.0  # seconds
_LOADED_FOR = 5.0  # seconds
_SHARED, _FILES = "shm, MB", "open files"  # rows without which loaders do not start
_FEW, _DRAWN = 32, (500, 375)  # drawn pictures of each process, and their size in pixels

Judged = tuple[str, str]  # ok, slow or wrong; and the figures


@dataclass
class Selftest:
    """What is tested, and what later rows compare with."""

    cfg: CfgNode
    device: torch.device
    patch_size: int
    bytes_per_image: int
    parameters: int
    load: Load
    verdicts: dict[str, str] = field(default_factory=dict)
    peak: float = math.nan  # operations per second in matrix products
    update_seconds: float = math.nan

    @property
    def images(self) -> int:
        """Images of a process in an update."""
        return int(self.cfg.DATA.BATCH_SIZE) * max(self.cfg.TRAIN.ACCUMULATION_STEPS, 1)

    @property
    def precision(self) -> torch.dtype:
        """The precision of the recipe on this device."""
        return choose_precision(self.cfg.TRAIN.PRECISION, self.device)

    @property
    def folder(self) -> Path:
        """The folder of the run, or the one in which it would be created."""
        return host.existing(run_folder(self.cfg))


def main() -> int:
    """Test everything in turn; return the exit status."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    if arguments.data_path and cfg.DATA.DATASET == "shapes":
        cfg = with_options(cfg, ["DATA.DATASET", "imagenet"])
    test = prepare(cfg)
    try:
        start_process_group(test.device, min(cfg.TRAIN.LOST_AFTER, _LOST_AFTER))
    except ValueError as error:
        print(f"wrong  {'processes':<16}{error}", flush=True)
        return 1
    tell(f"recipe {arguments.cfg}")
    for what, (measure, judge) in ROWS.items():
        add_row(test, what, measure, judge)
    names: dict[str, list[str]] = {"wrong": [], "slow": [], "ok": []}
    for what, verdict in test.verdicts.items():
        names[verdict].append(what)
    wrong, slow = (", ".join(names[verdict]) or "nothing" for verdict in ("wrong", "slow"))
    tell(f"wrong: {wrong}; slow: {slow}")
    return 1 if names["wrong"] else 0


def prepare(cfg: CfgNode) -> Selftest:
    """Choose the device, and count what the recipe needs, as tools.plan and tools.cluster do."""
    with torch.device("meta"):
        model: Any = needs.build(cfg, recompute=False)
    encoder = getattr(model, "encoder", model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    operations = (4 if cfg.TRAIN.USE_CHECKPOINT else 3) * needs.count_operations(cfg)
    load = Load(operations, needs.FLOAT32 * parameters, cfg.TRAIN.SHARDING == "full")
    pixels = encoder.in_chans * math.prod(to_2tuple(cfg.DATA.IMG_SIZE))
    return Selftest(cfg, set_up_device(cfg), encoder.patch_size, pixels, parameters, load)


def add_row(
    test: Selftest,
    what: str,
    measure: Callable[[Selftest], Any],
    judge: Callable[[Selftest, list[Any]], Judged],
) -> None:
    """Measure in every process, judge what all have found, and print it.

    An error of any process makes the row wrong.
    """
    own, error = None, ""
    try:
        own = measure(test)
    except (ValueError, OSError, RuntimeError, MemoryError) as caught:
        where = f"{caught.filename}: " if isinstance(caught, OSError) and caught.filename else ""
        error = shortage(caught) or f"{where}{reason_of(caught)}"
        if world_size() > 1:  # at once: the others may wait for this process inside of `measure`
            print(f"rank {rank()}: {what}: {error}", file=sys.stderr, flush=True)
    found = gathered((own, error))
    errors = [f"rank {at}: {words}" for at, (_, words) in enumerate(found) if words]
    judged = ("wrong", errors[0]) if errors else judge(test, [value for value, _ in found])
    test.verdicts[what] = judged[0]
    tell(f"{judged[0]:<7}{what:<16}{' '.join(judged[1].split())}")


def gathered(value: Any) -> list[Any]:
    """What every process gives."""
    values = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def tell(text: str) -> None:
    """Print a line in the first process."""
    if rank() == 0:
        print(text, flush=True)


def describe_device(test: Selftest) -> str:
    """Name, memory, driver, and whether bfloat16 is native."""
    native = choose_precision("auto", test.device) == torch.bfloat16
    words = f"bfloat16 {'native' if native else 'not native'}"
    if test.device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return f"{cpu_name()} ({os.cpu_count()} cores, {memory:.0f} GiB, {words})"
    driver = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text() if _DRIVER.exists() else "")
    properties = torch.cuda.get_device_properties(test.device)
    memory, name = properties.total_memory / 2**30, driver[0] if driver else "unknown"
    return f"{properties.name} ({memory:.0f} GiB, driver {name}, {words})"


def judge_devices(test: Selftest, found: list[str]) -> Judged:
    """Different devices work together, at the speed of the slowest."""
    counts = Counter(found)
    text = "; ".join(f"{number} x {name}" for name, number in counts.items())
    return "ok" if len(counts) == 1 else "slow", text


def judge_group(test: Selftest, found: list[tuple[str, str]]) -> Judged:
    """Processes of several machines must not meet by the loopback interface."""
    hosts = Counter(name for name, _ in found)
    where = ", ".join(f"{number} on {name}" for name, number in hosts.items())
    if not distributed.is_initialized():
        return "ok", f"{where}, no group (torchrun, srun or mpirun start several)"
    interfaces = sorted({name or "that of the host's name" for _, name in found})
    text = f"{where}; {distributed.get_backend()}; gloo's interface: {', '.join(interfaces)}"
    return "wrong" if len(hosts) > 1 and "lo" in interfaces else "ok", text


def judge_products(test: Selftest, found: list[float]) -> Judged:
    """A device that is much slower than the others delays all of them."""
    test.peak, fastest = min(found), max(found)
    text = f"{test.peak / 1e12:.2f} TFLOP/s in {dtype_name(test.precision)}"
    text += f" (the fastest process: {fastest / 1e12:.2f})" if len(found) > 1 else ""
    return "ok" if test.peak > 0.8 * fastest else "slow", text


def measure_sending(test: Selftest) -> float:
    """Bytes per second that each process sends in an all-reduce as large as the gradients."""
    size = min(test.load.gradient_bytes, _LARGEST_MESSAGE)
    values = torch.zeros(size // needs.FLOAT32, device=test.device)
    seconds = []
    for _ in range(4 if world_size() > 1 else 0):  # the first one sets up connections
        synchronize(test.device)
        start = time.perf_counter()
        distributed.all_reduce(values)
        synchronize(test.device)
        seconds.append(time.perf_counter() - start)
    return 2 * size * (world_size() - 1) / world_size() / min(seconds[1:], default=1.0)


def judge_sending(test: Selftest, found: list[float]) -> Judged:
    """Compare with what docs/large-models.md says hides the traffic of the recipe's gradients."""
    if world_size() == 1:
        return "ok", "not needed: one process"
    assumed = Assumed(test.peak * UTILIZATION, min(found), 1, 1, 1)
    update = work_out(test.load, assumed, world_size(), test.images)
    waits = update.waiting / (update.waiting + update.computing)
    text = f"{min(found) / 1e9:.2f} GB/s of each process; {update.needed / 1e9:.2f} hide it: "
    return "slow" if waits > 0.1 else "ok", f"{text}updates wait {waits:.0%} of the time"


def measure_update(test: Selftest) -> tuple[float, float]:
    """Seconds of an update by the training loop on noise, and its peak memory in MiB."""
    work = training_work(test.cfg, 1, False)
    for _ in range(WARM_UP):
        work.run()
    start = time.perf_counter()
    work.run()
    return time.perf_counter() - start, float(work.figures()["memory_mb"])


def judge_update(test: Selftest, found: list[tuple[float, float]]) -> Judged:
    """Compare with the share of matrix products that docs/large-models.md assumes of GPUs."""
    test.update_seconds = max(seconds for seconds, _ in found)
    share = test.images * test.load.operations / test.update_seconds / test.peak
    text = f"{test.update_seconds:.3f} s for {test.images} images of each process, {share:.0%} of "
    text += f"matrix products; peak memory {max(memory for _, memory in found):,.0f} MiB"
    return "slow" if test.device.type == "cuda" and share < UTILIZATION / 2 else "ok", text


def use_disk(test: Selftest) -> tuple[float, float, bool]:
    """Seconds to write and read in the first process; whether this one sees the file."""
    error: Exception | None = None
    path, writing, reading = Path(), 0.0, 0.0
    with contextlib.ExitStack() as stack:
        try:
            if rank() == 0:
                file = host.written_file(test.folder, min(checkpoint_size(test), _LARGEST_FILE))
                path, writing = stack.enter_context(file)
                reading = host.seconds_to_read(path)
        except (ValueError, OSError) as caught:
            error = caught
        sees = gathered(path)[0].exists()
        gathered(None)  # the file stays until all have looked
    if error is not None:
        raise error
    return writing, reading, sees


def checkpoint_size(test: Selftest) -> int:
    """Bytes of weights and two moments."""
    return 3 * needs.FLOAT32 * test.parameters


def judge_disk(test: Selftest, found: list[tuple[float, float, bool]]) -> Judged:
    """The first process writes checkpoints; all of them read one to resume."""
    blind = [at for at, (_, _, sees) in enumerate(found) if not sees]
    if blind:
        return "wrong", f"{test.folder} of rank 0 is not that of ranks {blind}: no run can resume"
    (writing, reading, _), size = found[0], checkpoint_size(test)
    tested = min(size, _LARGEST_FILE)
    text = f"{test.folder}: {tested / writing / 1e6:,.0f} MB/s written, "
    text += f"{tested / reading / 1e6:,.0f} read; a checkpoint has {size / 1e6:,.0f} MB"
    return "ok" if writing * size / tested < _SAVED_WITHIN else "slow", text


def judge_room(test: Selftest, found: list[int]) -> Judged:
    """A run needs room for the checkpoints that it keeps, and for one more."""
    keys, free = test.cfg, found[0]
    kept = keys.KEEP_LAST or -(-keys.TRAIN.EPOCHS // keys.SAVE_FREQ)
    needed = (kept + 1) * checkpoint_size(test)
    text = f"{free / 1e9:,.1f} GB free for {kept} checkpoints and one more, {needed / 1e9:,.1f} GB"
    return ("ok", text) if free > needed else ("wrong", f"{text} (--opts KEEP_LAST N keeps fewer)")


def measure_shared_memory(test: Selftest) -> tuple[float, float]:
    """MB that are free, and that the workers of all processes of this machine need."""
    local = gathered(socket.gethostname()).count(socket.gethostname())
    batch = test.cfg.DATA.BATCH_SIZE * test.bytes_per_image
    free, needed = host.shared_memory(test.cfg.DATA.NUM_WORKERS * local, batch)
    return free / 1e6, needed / 1e6


def judge_limit(test: Selftest, found: list[tuple[float, float]]) -> Judged:
    """Of the process that has least: what there is, and what its workers need."""
    there, needed = min(found, key=lambda one: one[0] - one[1])
    workers = test.cfg.DATA.NUM_WORKERS
    text = f"{there:,.0f}, of which {workers} worker(s) of each process need {needed:,.0f}"
    return ("ok", text) if there >= needed else ("wrong", f"{text} (--opts DATA.NUM_WORKERS N)")


def measure_loading(test: Selftest) -> float | None:
    """Images per second of this process's workers; None where they cannot be measured."""
    cfg = test.cfg
    if "wrong" in (test.verdicts[_SHARED], test.verdicts[_FILES]):
        return None
    with tempfile.TemporaryDirectory() as folder:
        if cfg.DATA.DATASET == "imagenet" and not cfg.DATA.DATA_PATH:
            if is_finetuning(cfg):
                return None
            collect_pictures("", Path(folder), _FEW * world_size(), _DRAWN)
            few = ["DATA.BATCH_SIZE", min(cfg.DATA.BATCH_SIZE, _FEW)]
            cfg = with_options(cfg, ["DATA.DATA_PATH", folder, "TRAIN.ACCUMULATION_STEPS", 1, *few])
        loader = training_loader(cfg, test.patch_size, test.device)
        return host.images_per_second(loader, _LOADED_FOR)


def judge_loading(test: Selftest, found: list[float | None]) -> Judged:
    """Compare with the images that an update needs."""
    speeds = [speed for speed in found if speed is not None]
    if not speeds:
        return "ok", "not measured: limits above are wrong, or --data-path is missing"
    keys, speed, needed = test.cfg.DATA, min(speeds), test.images / test.update_seconds
    text = f"{speed / max(keys.NUM_WORKERS, 1):,.0f} pictures/s of each of {keys.NUM_WORKERS} "
    text += f"worker(s) ({keys.DATA_PATH or 'drawn ones'})"
    if math.isnan(needed):  # the update has failed
        return "ok", text
    return "slow" if speed < needed else "ok", f"{text}; updates need {needed:,.1f} in each process"


ROWS: dict[str, tuple[Callable[[Selftest], Any], Callable[[Selftest, list[Any]], Judged]]] = {
    "devices": (describe_device, judge_devices),
    "processes": (lambda test: (socket.gethostname(), os.environ.get(VARIABLE, "")), judge_group),
    "matrix products": (lambda test: matmul_peak(test.device, test.precision, 3), judge_products),
    "all-reduce": (measure_sending, judge_sending),
    "an update": (measure_update, judge_update),
    "disk": (use_disk, judge_disk),
    "room": (lambda test: shutil.disk_usage(test.folder).free, judge_room),
    _SHARED: (measure_shared_memory, judge_limit),
    _FILES: (lambda test: host.open_files(test.cfg.DATA.NUM_WORKERS), judge_limit),
    "loader": (measure_loading, judge_loading),
}


if __name__ == "__main__":
    run_program(main)
