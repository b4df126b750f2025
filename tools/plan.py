"""Estimate what a recipe needs: parameters, operations, memory of each GPU, batch size.

python -m tools.plan --cfg FILE [--gpus N] [--memory GIB] [--opts TRAIN.SHARDING full ...]

Nothing is computed: the model runs with fake tensors, which have shapes but no values.
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
    parser = make_parser("-m tools.plan", __doc__, ("--cfg", "--opts", "--amp-opt-level"))
    parser.add_argument("--gpus", type=positive_integer, default=8, metavar="N", help="[8]")
    parser.add_argument(
        "--memory", type=positive_number, default=80, metavar="GIB", help="of each GPU [80]"
    )
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import torch
from timm.layers import to_2tuple
from yacs.config import CfgNode

from tools.measuring.needs import Activations, Needs, count_needs, memory_of
from utils.config import is_finetuning
from utils.device import dtype_name
from utils.processes.exit_status import run_program

GIB = 2**30
_RESERVE = 0.1  # of the memory: the CUDA context, workspaces of kernels, fragmentation


def main() -> None:
    """Print the plan."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    dtype = torch.float32 if cfg.TRAIN.PRECISION == "float32" else torch.bfloat16
    needs = count_needs(cfg, dtype)
    print("\n".join(plan_lines(cfg, needs, dtype, arguments.gpus, arguments.memory)))


def largest_batch(memory: float, fixed: int, activations: Activations) -> int:
    """Images that fit into `memory` bytes, of which a tenth stays free; 0 where none fits."""
    room = memory * (1 - _RESERVE) - fixed - activations.fixed
    return max(int(room // activations.per_image), 0)


def plan_lines(
    cfg: CfgNode, needs: Needs, dtype: torch.dtype, gpus: int, memory: float
) -> list[str]:
    """Lines of the report."""
    height, width = to_2tuple(cfg.DATA.IMG_SIZE)
    sharding = cfg.TRAIN.SHARDING
    kinds = memory_of(needs, gpus, sharding == "full")
    fixed = sum(kinds.values())
    stage = "fine-tuning" if is_finetuning(cfg) else "pre-training"
    lines = [
        f"{cfg.TAG} ({stage} of {cfg.MODEL.TYPE}, {height} x {width} pixels)",
        f"parameters                         {needs.parameters:>16,}",
        f"operations per image, forward      {needs.operations / 1e9:>16,.1f} GFLOP",
        f"operations per image, training     {3 * needs.operations / 1e9:>16,.1f} GFLOP",
        f"memory of each of {gpus} GPU(s), {dtype_name(dtype)}, SHARDING {sharding}:",
    ]
    lines += [f"  {kind:<33}{size / GIB:>16,.2f} GiB" for kind, size in kinds.items()]
    for name, activations in (("kept", needs.kept), ("recomputed", needs.recomputed)):
        lines += [
            f"activations {name} (USE_CHECKPOINT {name == 'recomputed'}):",
            f"  {'for any batch':<33}{activations.fixed / GIB:>16,.2f} GiB",
            f"  {'for each image':<33}{activations.per_image / GIB:>16,.3f} GiB",
            f"  {f'images that fit into {memory:g} GiB':<33}"
            f"{largest_batch(memory * GIB, fixed, activations):>16,}",
        ]
    lines.append(f"A tenth of the memory stays free: {memory * _RESERVE:g} GiB.")
    return lines


if __name__ == "__main__":
    run_program(main)
