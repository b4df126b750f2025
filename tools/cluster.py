"""Estimate what a recipe needs of a cluster: network, input pipeline, and their limits.

python -m tools.cluster --cfg FILE [--gpus 8 64 512] [--tflops 989] [--utilization 0.45] ...

Computed from counted operations and bytes and the values of the flags; nothing is measured.
"""

import argparse

from utils.config.arguments import (
    make_parser,
    positive_integer,
    positive_number,
    read_config,
    read_early,
)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    flags = ("--cfg", "--opts", "--batch-size", "--use-checkpoint")
    parser = make_parser("-m tools.cluster", __doc__, flags)
    numbers = {
        "tflops": (989.0, "a GPU's peak in the recipe's precision (H100 SXM, bfloat16: 989)"),
        "utilization": (0.45, "share of it that training reaches"),
        "network": (50.0, "GB/s of each GPU to others (InfiniBand NDR: 50)"),
        "images-per-core": (500.0, "that a CPU core loads in a second (tools.benchmark data)"),
        "image-kb": (110.0, "of a picture file"),
    }
    for name, (default, words) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=positive_number,
            default=default,
            metavar="X",
            help=f"{words} [{default:g}]",
        )
    parser.add_argument(
        "--gpus",
        type=positive_integer,
        nargs="+",
        default=[8, 64, 512],
        metavar="N",
        help="[8 64 512]",
    )
    parser.add_argument(
        "--update-images", type=positive_integer, default=2048, metavar="N", help="published [2048]"
    )
    parser.add_argument(
        "--epoch-images",
        type=positive_integer,
        default=1281167,
        metavar="N",
        help="ImageNet [1281167]",
    )
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

from collections.abc import Sequence

from yacs.config import CfgNode

from tools.measuring.needs import FLOAT32, count_operations, count_parameters
from tools.measuring.network import Assumed, Load, Update, smallest_batch, work_out
from utils.processes.exit_status import run_program

_HEADINGS = (
    "GPUs", "images per GPU", "computing, ms", "sent per GPU, MB", "GB/s to hide it",
    "waits for network", "images/s", "reads, GB/s", "CPU cores per GPU", "an epoch",
)  # fmt: skip


def main() -> None:
    """Print the report."""
    arguments = read_arguments()
    print("\n".join(report(read_config(arguments), arguments)))


def report(cfg: CfgNode, arguments: argparse.Namespace) -> list[str]:
    """Two tables: --update-images per update of all GPUs, and the recipe's batch of each GPU."""
    operations, parameters = count_operations(cfg), count_parameters(cfg)
    passes = 4 if cfg.TRAIN.USE_CHECKPOINT else 3
    sharded = cfg.TRAIN.SHARDING == "full"
    load = Load(passes * operations, FLOAT32 * parameters, sharded)
    assumed = Assumed(
        flops=arguments.tflops * 1e12 * arguments.utilization,
        network=arguments.network * 1e9,
        images_per_core=arguments.images_per_core,
        bytes_per_image=arguments.image_kb * 1e3,
        num_images=arguments.epoch_images,
    )
    lines = [
        f"{cfg.TAG}: {parameters:,} parameters, {load.operations / 1e9:.1f} GFLOP for an image, "
        f"SHARDING {cfg.TRAIN.SHARDING}, {FLOAT32 * parameters / 1e6:,.0f} MB of gradients"
    ]
    total, own = arguments.update_images, cfg.DATA.BATCH_SIZE
    for title, batch_of in (
        (f"{total:,} images per update", lambda gpus: max(total // gpus, 1)),
        (f"{own} images of each GPU per update", lambda gpus: own),
    ):
        lines += ["", f"{title}:", "", _row(_HEADINGS), "|" + "---|" * len(_HEADINGS)]
        for gpus in arguments.gpus:
            update = work_out(load, assumed, gpus, batch_of(gpus))
            lines.append(_row(cells(update, assumed)))
    smallest = smallest_batch(load, assumed, max(arguments.gpus))
    return [*lines, "", f"The network is hidden from {smallest:.0f} images of each GPU on."]


def cells(update: Update, assumed: Assumed) -> list[str]:
    """The cells of a row of the table."""
    speed = update.images_per_second
    whole = update.computing + update.waiting
    return [
        f"{update.gpus}",
        f"{update.batch}",
        f"{update.computing * 1e3:.1f}",
        f"{update.sent / 1e6:,.0f}",
        f"{update.needed / 1e9:.1f}",
        f"{update.waiting / whole:.0%}",
        f"{speed:,.0f}",
        f"{speed * assumed.bytes_per_image / 1e9:.2f}",
        f"{speed / update.gpus / assumed.images_per_core:.1f}",
        f"{assumed.num_images / speed:,.0f} s",
    ]


def _row(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


if __name__ == "__main__":
    run_program(main)
