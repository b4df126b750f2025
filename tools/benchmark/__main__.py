"""Measure training on this machine, optionally in turn with other programs (A B A B).

python -m tools.benchmark step --cfg FILE [--vs transformers|math|eager]
    whole updates on noise: images/s, operations/s and their share of this machine's peak in matrix
    products, peak memory, time by kind of operation (either stage); against transformers, or this
    project with GPUs' unfused attention (math) or without TRAIN.COMPILE (eager)
python -m tools.benchmark data --cfg FILE [--vs pillow] [--data-path DIR]
    decoding, augmentation and masks through the loader: images/s of one worker (per core)
python -m tools.benchmark train --cfg FILE [--data-path DIR]
    updates with real data: share of time that waits for data, and speed relative to noise

Without DIR, JPEG files of 500 x 375 pixels (--picture-size) are generated. The last line is JSON:
all figures, with hardware, versions and settings. Under torchrun, step and train measure all
processes together, without a second side.
"""

import argparse

from utils.config.arguments import make_parser, positive_integer, read_config, read_early
from utils.config.flags import UPDATE_FLAGS
from utils.messages import one_of, shown

RIVALS = ("transformers", "math", "eager")


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    flags = ("--cfg", "--opts", "--data-path", *UPDATE_FLAGS)
    parser = make_parser("-m tools.benchmark", __doc__, flags, "{step,data,train} ")
    parser.add_argument("what", choices=("step", "data", "train"))
    parser.add_argument("--vs", choices=(*RIVALS, "pillow"), help="for step; pillow for data")
    parser.add_argument(
        "--rounds", type=positive_integer, default=5, metavar="N", help="of one A and one B [5]"
    )
    parser.add_argument(
        "--updates", type=positive_integer, metavar="N", help="of one round; of step and train"
    )
    parser.add_argument(
        "--pictures", type=positive_integer, default=256, metavar="N", help="of data [256]"
    )
    parser.add_argument(
        "--picture-size", metavar="WxH", help="of those drawn, without DIR [500x375]"
    )
    arguments = parser.parse_args()
    if arguments.picture_size and (arguments.what == "step" or arguments.data_path):
        raise ValueError("--picture-size is for pictures that data and train draw without DIR")
    rivals = {"step": RIVALS, "data": ("pillow",)}.get(arguments.what, ())
    if arguments.vs and arguments.vs not in rivals:
        known = one_of(rivals) if rivals else "nothing else"
        raise ValueError(f"{arguments.what} is measured against {known}, not {arguments.vs}")
    return arguments


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from models import build_pretrain_model
from tools.benchmark.rivals import (
    pillow_work,
    sides_against,
)
from tools.measuring.kernels import matmul_peak
from tools.measuring.measure import (
    Figures,
    Side,
    as_it_comes,
    in_turn,
    launched_processes,
    launched_rank,
    machine,
    ratio,
)
from tools.measuring.needs import count_operations
from tools.measuring.workloads import collect_pictures, loading_work, settings, training_work
from utils.config import is_finetuning
from utils.device import choose_device, choose_precision, dtype_name
from utils.processes.exit_status import run_program
from utils.training.run import set_up_device

OURS = "this project"
_LONGEST_SIDE = 10000  # pixels


def main() -> None:
    """Run one measurement; print its table and a line of JSON."""
    arguments = read_arguments()
    if launched_processes() > 1 and (arguments.vs or arguments.what == "data"):
        raise ValueError("under torchrun only step and train are measured, without --vs")
    measure = {"step": measure_step, "data": measure_data, "train": measure_training}
    cfg = read_config(arguments)
    figures = measure[arguments.what](cfg, arguments)
    tell(json.dumps(settings(cfg) | machine(choose_device(cfg.DEVICE)) | figures))


def tell(text: str) -> None:
    """Print a line in the first process."""
    if launched_rank() == 0:
        print(text, flush=True)


def measure_sides(sides: Sequence[Side], rounds: int) -> tuple[dict[str, list[float]], Any]:
    """Measure seconds and other figures of every side; end their processes."""
    try:
        return in_turn(sides, rounds), {side.name: side.figures() for side in sides}
    finally:
        for side in sides:
            side.close()


def measure_step(cfg: CfgNode, arguments: argparse.Namespace) -> Figures:
    """Measure whole updates on one batch of noise."""
    device = set_up_device(cfg)
    dtype = choose_precision(cfg.TRAIN.PRECISION, device)
    updates = arguments.updates or (10 if device.type == "cuda" else 1)
    rivals = sides_against(arguments.vs, cfg, updates) if arguments.vs else []
    operations = 3 * count_operations(cfg)  # of an image: backward takes twice as many as forward
    peak = matmul_peak(device, dtype)
    sides = [Side(OURS, training_work, (cfg, updates, False, True))]
    times, extra = measure_sides([*sides, *rivals], arguments.rounds)
    peak = max(peak, matmul_peak(device, dtype))
    images = updates * images_per_update(cfg)
    rows = {}
    for name, seconds in times.items():
        speed = images / statistics.median(seconds)
        rows[name] = {
            "images_per_second": speed,
            "seconds_per_update": statistics.median(seconds) / updates,
            "tflops": speed * operations / 1e12,
            "utilization": speed * operations / peak / launched_processes(),
            "memory_mb": extra[name]["memory_mb"],
        }
    shares = extra[OURS]["breakdown"]
    print_table(rows)
    print_ratio(times)
    tell(f"\nmatrix products reach {peak / 1e12:.2f} TFLOP/s here in {dtype_name(dtype)}")
    slower = extra[OURS]["profiled"]
    tell(f"where the time of {OURS} goes (profiled updates take {slower:.2f} times as long):")
    if slower > 1.1:
        tell("  more than 1.1 times: the profiler takes part of these shares")
    for kind, share in shares.items():
        if share >= 0.001:
            tell(f"  {kind:<28}{share:>7.1%}")
    more = {"peak_tflops": peak / 1e12, "breakdown": shares, "profiled": slower}
    return summary(times) | {"rows": rows} | more


def measure_data(cfg: CfgNode, arguments: argparse.Namespace) -> Figures:
    """Measure reading, cropping and masking of pictures in one worker of the loader."""
    if is_finetuning(cfg):
        raise ValueError(f"data is measured for pre-training, not for {cfg.MODEL.NAME}")
    patch_size = build_pretrain_model(cfg).encoder.patch_size
    with tempfile.TemporaryDirectory() as folder:
        size = picture_size(arguments.picture_size)
        number = collect_pictures(cfg.DATA.DATA_PATH, Path(folder), arguments.pictures, size)
        batch = min(cfg.DATA.BATCH_SIZE, number)
        arguments.data_path, arguments.batch_size = folder, batch
        arguments.opts += ["DATA.DATASET", "imagenet", "DATA.NUM_WORKERS", 1]
        cfg = read_config(arguments)
        sides = [Side(OURS, loading_work, (cfg, patch_size))]
        if arguments.vs:
            sides.append(Side(arguments.vs, pillow_work, (cfg, patch_size), as_it_comes))
        times, _ = measure_sides(sides, arguments.rounds)
    number = number // batch * batch
    speeds = {name: number / statistics.median(seconds) for name, seconds in times.items()}
    print_table({name: {"images_per_second": speed} for name, speed in speeds.items()})
    print_ratio(times)
    return summary(times) | {"images_per_second_and_core": speeds, "pictures": number}


def measure_training(cfg: CfgNode, arguments: argparse.Namespace) -> Figures:
    """Measure updates with real data and, in turn, with noise."""
    updates = arguments.updates or 10
    with tempfile.TemporaryDirectory() as folder:
        if cfg.DATA.DATASET == "imagenet" and not cfg.DATA.DATA_PATH and not is_finetuning(cfg):
            size = picture_size(arguments.picture_size)
            collect_pictures("", Path(folder), updates * images_per_update(cfg), size)
            arguments.data_path = folder
            cfg = read_config(arguments)
        sides = [Side("training", training_work, (cfg, updates, True))]
        if launched_processes() == 1:  # a second process group would reuse the first one's address
            sides.append(Side("on noise", training_work, (cfg, updates, False)))
        times, extra = measure_sides(sides, arguments.rounds)
    images = updates * images_per_update(cfg)
    rows = {
        name: {
            "images_per_second": images / statistics.median(seconds),
            "data_wait": extra[name]["data_wait"],
            "memory_mb": extra[name]["memory_mb"],
        }
        for name, seconds in times.items()
    }
    print_table(rows)
    print_ratio(times)
    return summary(times) | {"rows": rows, "workers": cfg.DATA.NUM_WORKERS}


def picture_size(text: str | None) -> tuple[int, int]:
    """Width and height of the pictures to draw, from "500x375", the default."""
    text = text or "500x375"
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) != 2 or not all(0 < side <= _LONGEST_SIDE for side in sides):
        raise ValueError(
            f"--picture-size is {shown(text)}, expected two sides of at most {_LONGEST_SIDE} "
            "pixels, for example 4000x3000"
        )
    return sides[0], sides[1]


def images_per_update(cfg: CfgNode) -> int:
    """Images per update of all processes together."""
    steps = max(cfg.TRAIN.ACCUMULATION_STEPS, 1)
    return int(cfg.DATA.BATCH_SIZE) * steps * launched_processes()


# Figure -> heading and format
COLUMNS = {
    "images_per_second": ("images/s", "{:,.2f}"),
    "seconds_per_update": ("s/update", "{:.4f}"),
    "tflops": ("TFLOP/s", "{:.3f}"),
    "utilization": ("of the peak", "{:.1%}"),
    "data_wait": ("waits for data", "{:.1%}"),
    "memory_mb": ("peak memory", "{:,.0f} MiB"),
}


def print_table(rows: dict[str, Figures]) -> None:
    """Print a row for each side."""
    names = list(next(iter(rows.values())))
    width = max(14, *map(len, rows))
    tell(" " * width + "".join(f"{COLUMNS[name][0]:>16}" for name in names))
    for side, figures in rows.items():
        tell(f"{side:<{width}}" + "".join(f"{COLUMNS[n][1].format(figures[n]):>16}" for n in names))


def print_ratio(times: dict[str, list[float]]) -> None:
    """Print the speed of the first side relative to each other one."""
    first, *others = times
    for other in others:
        middle, smallest, largest = ratio(times[first], times[other]).values()
        tell(
            f"{first} is {middle:.2f} times as fast as {other} "
            f"({smallest:.2f} to {largest:.2f} in {len(times[first])} rounds)"
        )


def summary(times: dict[str, list[float]]) -> Figures:
    """Every round's seconds, and the ratios of the first side to the others."""
    first, *others = times
    ratios = {other: ratio(times[first], times[other]) for other in others}
    return {"seconds": times} | ({"ratio": ratios} if ratios else {})


if __name__ == "__main__":
    run_program(main)
