"""Measure time and memory of updates by one key at a time: a table for each, and a picture.

python -m tools.scaling --cfg FILE --vary DATA.BATCH_SIZE 1 2 4 8 --vary DATA.IMG_SIZE 96 192 \\
    [--picture scaling.png]

Every value runs in a process of its own, on noise. Pictures need matplotlib (pip install
matplotlib). The last line is JSON.
"""

import argparse

from utils.config.arguments import make_parser, positive_integer, read_config, read_early
from utils.config.flags import UPDATE_FLAGS


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.scaling", __doc__, ("--cfg", "--opts", *UPDATE_FLAGS))
    parser.add_argument(
        "--vary", nargs="+", action="append", required=True, metavar="KEY VALUE", help="a key"
    )
    parser.add_argument(
        "--rounds", type=positive_integer, default=5, metavar="N", help="of each value [5]"
    )
    parser.add_argument("--picture", metavar="FILE", help="where to draw")
    arguments = parser.parse_args()
    if min(map(len, arguments.vary)) < 3:
        raise ValueError("--vary takes a key and two values or more")
    return arguments


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import json
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from yacs.config import CfgNode

from logger import progress_bar
from tools.chart import new_chart, save_chart
from tools.measuring.measure import Side, in_turn, machine
from tools.measuring.needs import count_operations
from tools.measuring.workloads import settings, training_work
from utils.device import choose_device
from utils.processes.exit_status import run_program


@dataclass(frozen=True)
class Point:
    """One value of a key, and time and memory of an update with it."""

    value: object
    seconds: float
    images_per_second: float
    tflops: float
    memory_mb: float


def main() -> None:
    """Measure every value of every key; print tables and a line of JSON; draw."""
    arguments = read_arguments()
    if arguments.picture:
        new_chart(1, 1)  # fails before measuring where matplotlib is missing
    cfg, opts = read_config(arguments), arguments.opts
    configs: dict[str, list[CfgNode]] = {}
    for key, *values in arguments.vary:  # read all values before measuring the first
        configs[key] = []
        for value in values:
            arguments.opts = [*opts, key, value]
            configs[key].append(read_config(arguments))
    curves = {}
    for key, variants in configs.items():
        bar = progress_bar(variants, name=key, rank=0)
        curves[key] = [measure(variant, key, arguments.rounds) for variant in bar]
        print_table(key, curves[key])
    if arguments.picture:
        print(f"wrote {draw(curves, arguments.picture)}")
    figures = {key: [asdict(point) for point in points] for key, points in curves.items()}
    print(json.dumps(settings(cfg) | machine(choose_device(cfg.DEVICE)) | {"curves": figures}))


def measure(cfg: CfgNode, key: str, rounds: int) -> Point:
    """Measure updates with one configuration; the time is the median of the rounds."""
    side = Side(cfg.TAG, training_work, (cfg, 1, False))
    try:
        seconds = statistics.median(in_turn([side], rounds)[side.name])
        memory = side.figures()["memory_mb"]
    finally:
        side.close()
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    images = cfg.DATA.BATCH_SIZE * max(cfg.TRAIN.ACCUMULATION_STEPS, 1)
    speed = images / seconds
    return Point(value, seconds, speed, 3 * speed * count_operations(cfg) / 1e12, memory)


def print_table(key: str, points: list[Point]) -> None:
    """Print a row for each value."""
    print(f"| {key} | s/update | images/s | TFLOP/s | peak memory, MiB |\n|---|---|---|---|---|")
    for point in points:
        print(
            f"| {point.value} | {point.seconds:.3f} | {point.images_per_second:.2f} "
            f"| {point.tflops:.3f} | {point.memory_mb:,.0f} |",
            flush=True,
        )
    print()


def draw(curves: dict[str, list[Point]], picture: str) -> str:
    """Draw time and memory by each key, side by side; return the file."""
    chart = new_chart(4.2 * len(curves), 3.4)
    for axes, (key, points) in zip(
        chart.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        ticks = places([point.value for point in points])
        axes.set(xlabel=key, xticks=ticks)
        axes.set_xticklabels([str(point.value) for point in points], fontsize=7)
        seconds = [point.seconds for point in points]
        memory = [point.memory_mb / 1024 for point in points]
        _plot(axes, ticks, seconds, "o-", "C0", "seconds per update")
        _plot(axes.twinx(), ticks, memory, "s--", "C1", "peak memory, GiB")
    return save_chart(chart, picture)


def _plot(
    axes: Any, ticks: list[float], values: list[float], style: str, colour: str, label: str
) -> None:
    """Plot a curve on an axis from 0; the frame does not clip its marks."""
    axes.plot(ticks, values, style, color=colour, clip_on=False, zorder=3)
    axes.set_ylim(0, 1.08 * max(values))
    axes.set_ylabel(label, color=colour)


def places(values: list[Any]) -> list[float]:
    """Positions on the axis: numbers at their value, lists at their sum, words at 0, 1, ..."""
    sums = [sum(value) if isinstance(value, list | tuple) else value for value in values]
    if all(isinstance(value, int | float) for value in sums):
        return [float(value) for value in sums]
    return [float(index) for index in range(len(values))]


if __name__ == "__main__":
    run_program(main)
