"""Measure updates of published recipes on a GPU, and write a table (about 20 minutes).

python -m tools.gpu_report [--rounds 3] [--batch-size 128] [--most 4096] [--output gpu.md]
    [--opts KEY VALUE ...]

Each row compares a recipe in turn (A B A B) with transformers, with unfused attention (math), and,
compiled, with itself uncompiled. The largest batch is found by doubling, up to --most.
"""

import argparse
from pathlib import Path

from utils.config import get_config
from utils.config.arguments import make_parser, positive_integer, read_early

# Title -> recipe, options
RECIPES: dict[str, tuple[str, list[str]]] = {
    "Swin-B, window 6": ("swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep", []),
    "Swin-B, window 12": (
        "swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep",
        ["MODEL.SWIN.WINDOW_SIZE", "12"],
    ),
    "ViT-B": ("vit_base__800ep/simmim_pretrain__vit_base__img224__800ep", []),
    "SwinV2-B": ("swinv2_base__800ep/simmim_pretrain__swinv2_base__img192_window12__800ep", []),
}
# transformers has no Swin V2 with a mask token, and no Swin whose last stage is below its window.
_WITHOUT_RIVAL = ("SwinV2-B", "Swin-B, window 12")
_HEADINGS = (
    *("recipe", "images", "images/s", "of the peak", "peak memory, GiB"),
    *("times transformers", "times math", "compiled: images/s", "of the peak", "times eager"),
)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.gpu_report", __doc__, ("--opts",), recipe="[--rounds N]")
    parser.add_argument("--rounds", type=positive_integer, default=3, metavar="N", help="[3]")
    parser.add_argument("--batch-size", type=positive_integer, default=128, metavar="N")
    parser.add_argument(
        "--most", type=positive_integer, default=4096, metavar="N", help="largest batch [4096]"
    )
    parser.add_argument("--output", metavar="FILE", help="write the table there as well")
    arguments = parser.parse_args()
    for recipe, options in RECIPES.values():
        get_config(_path(recipe), [*options, *arguments.opts])  # a wrong key ends the program here
    return arguments


def _path(recipe: str) -> str:
    return f"configs/{recipe}.yaml"


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import json
import subprocess
import sys
from typing import Any

from utils.device import choose_device
from utils.processes.exit_status import run_program

_STEP = [sys.executable, "-m", "tools.benchmark", "step"]


def measure(
    recipe: str, options: list[str], batch_size: int, rounds: int, *flags: str
) -> dict[str, Any]:
    """Figures of the benchmark's command, {} where it fails, as for lack of memory."""
    command = [*_STEP, "--cfg", _path(recipe), "--batch-size", str(batch_size)]
    command += ["--rounds", str(rounds), *flags, "--accumulation-steps", "1", "--opts", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{' '.join(command[3:])}: {line}", file=sys.stderr, flush=True)
        return {}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def row_of(title: str, batch_size: int, rounds: int, opts: list[str]) -> list[str]:
    """The cells of a recipe's row; "-" where a measurement failed."""
    recipe, options = RECIPES[title]
    options = [*options, *opts]

    def against(rival: str, *more: str) -> dict[str, Any]:
        """Figures in turn with a rival."""
        flags = ("--vs", rival)
        return measure(recipe, [*options, *more], batch_size, rounds, *flags)

    math, compiled = against("math"), against("eager", "TRAIN.COMPILE", "model")
    theirs = {} if title in _WITHOUT_RIVAL else against("transformers")
    return [
        *(title, str(batch_size), *_figures(math)),
        *(_ratio(theirs, "transformers"), _ratio(math, "math")),
        *(*_figures(compiled)[:2], _ratio(compiled, "eager")),
    ]


def _figures(figures: dict[str, Any]) -> tuple[str, str, str]:
    """Images per second, share of the peak of matrix products, and GiB."""
    if not figures:
        return "-", "-", "-"
    row = next(iter(figures["rows"].values()))
    speed, share, memory = (row[name] for name in ("images_per_second", "utilization", "memory_mb"))
    return f"{speed:,.0f}", f"{share:.0%}", f"{memory / 1024:.1f}"


def _ratio(figures: dict[str, Any], rival: str) -> str:
    """How many times as fast as a rival, with the range over the rounds."""
    if not figures:
        return "-"
    middle, smallest, largest = figures["ratio"][rival].values()
    return f"{middle:.2f} ({smallest:.2f}-{largest:.2f})"


def largest_batch(title: str, batch_size: int, most: int, opts: list[str]) -> list[str]:
    """The cells of a row with the largest batch that fits, at most `most`, by doubling."""
    recipe, options = RECIPES[title]
    found: dict[str, Any] = {}
    while 2 * batch_size <= most and (
        more := measure(recipe, [*options, *opts], 2 * batch_size, 1)
    ):
        found, batch_size = more, 2 * batch_size
    return [f"{title}, the largest batch", str(batch_size), *_figures(found), *["-"] * 5]


def main() -> None:
    """Measure all recipes; print each row when it is complete, and write the table again."""
    arguments = read_arguments()
    wanted = get_config(None, arguments.opts).DEVICE
    if choose_device(wanted).type == "cpu" and wanted != "cpu":
        raise ValueError("torch finds no GPU here to be measured")
    if arguments.output:
        Path(arguments.output).open("a").close()  # fails before measuring, and keeps what is there
    lines = [_line(_HEADINGS), _line(["---"] * len(_HEADINGS))]
    print("\n".join(lines), flush=True)

    def add(cells: list[str]) -> None:
        lines.append(_line(cells))
        print(lines[-1], flush=True)
        if arguments.output:
            Path(arguments.output).write_text("\n".join(lines) + "\n", encoding="utf-8")

    for title in RECIPES:
        size, opts = arguments.batch_size, arguments.opts
        add(row_of(title, size, arguments.rounds, opts))
        add(largest_batch(title, size, arguments.most, opts))


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_program(main)
