"""What a recipe needs before it runs: parameters, operations, memory of each GPU, batch size.

python -m tools.plan --cfg FILE [--gpus N] [--memory GIB] [--opts TRAIN.SHARDING full ...]

Nothing is computed: the model runs once with tensors that have a shape and no numbers.
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
    """The command line."""
    parser = make_parser("-m tools.plan", __doc__, ("--cfg", "--opts", "--amp-opt-level"))
    parser.add_argument("--gpus", type=positive_integer, default=8, metavar="N", help="[8]")
    parser.add_argument(
        "--memory", type=positive_number, default=80, metavar="GIB", help="of each GPU [80]"
    )
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(lambda: read_config(read_arguments()))

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from models import build_classifier, build_pretrain_model
from models.simmim import Encoder
from utils.compilation import require_blocks
from utils.config import is_finetuning
from utils.device import dtype_name
from utils.processes.exit_status import run_program
from utils.processes.sharding import mixed_precision

GIB = 2**30
_FLOAT32 = 4
_RESERVE = 0.1  # of the memory: the CUDA context, workspaces of kernels, fragmentation


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass: `fixed`, and more for every image."""

    fixed: int
    per_image: int

    def of(self, batch: int) -> int:
        """Bytes for a batch."""
        return self.fixed + batch * self.per_image


@dataclass(frozen=True)
class Needs:
    """What a model needs: numbers of parameters, operations of one image, bytes of activations."""

    parameters: int
    outside_blocks: int
    largest_block: int
    operations: int  # forward; a multiplication and an addition are two
    kept: Activations
    recomputed: Activations


def main() -> None:
    """Count, divide by the GPUs, print."""
    arguments = read_arguments()
    cfg = read_config(arguments)
    dtype = torch.float32 if cfg.TRAIN.PRECISION == "float32" else torch.bfloat16
    needs = count_needs(cfg, dtype)
    print("\n".join(plan_lines(cfg, needs, dtype, arguments.gpus, arguments.memory)))


def _operations_of_baddbmm(
    added: torch.Size, one: torch.Size, other: torch.Size, **rest: object
) -> int:
    return int(2 * math.prod(one) * other[-1])


_OPERATIONS = {torch.ops.aten.baddbmm_: _operations_of_baddbmm}  # torch counts its other form only


def count_needs(cfg: CfgNode, dtype: torch.dtype) -> Needs:
    """Run the model of a configuration without numbers, and count."""
    with FakeTensorMode():
        model = build(cfg, recompute=False)
        kept, of_one_block = count_activations(cfg, model, dtype)
        recomputed, _ = count_activations(cfg, build(cfg, recompute=True), dtype)
    blocks = [_numel(block) for block in require_blocks(model, "tools.plan")]
    # Without sharding autocast holds on to the weights that it has rounded, recomputed or not.
    sharded = cfg.TRAIN.SHARDING == "full"
    fixed = recomputed.fixed + of_one_block.fixed if sharded else kept.fixed
    return Needs(
        parameters=_numel(model),
        outside_blocks=_numel(model) - sum(blocks),
        largest_block=max(blocks),
        operations=count_operations(cfg),
        kept=kept,
        recomputed=Activations(fixed, recomputed.per_image + of_one_block.per_image),
    )


def count_operations(cfg: CfgNode) -> int:
    """Operations of one image's forward pass; a multiplication and an addition are two."""
    counter = FlopCounterMode(display=False, custom_mapping=_OPERATIONS)
    with FakeTensorMode(), torch.no_grad(), counter:
        model: Any = build(cfg, recompute=False)
        model(*inputs_of(cfg, getattr(model, "encoder", model), 1))
    return int(counter.get_total_flops())


def count_parameters(cfg: CfgNode) -> int:
    """Of the model of a stage."""
    with FakeTensorMode():
        return _numel(build(cfg, recompute=False))


def build(cfg: CfgNode, recompute: bool) -> nn.Module:
    """The model of a stage: a classifier where MODEL.NAME says finetune."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAIN.USE_CHECKPOINT = recompute
    if is_finetuning(cfg):
        return build_classifier(cfg, cfg.MODEL.NUM_CLASSES).train()
    return build_pretrain_model(cfg).train()


def inputs_of(cfg: CfgNode, encoder: Encoder, batch: int) -> list[Tensor]:
    """What the model of a stage takes, without values."""
    height, width = to_2tuple(cfg.DATA.IMG_SIZE)
    image = torch.empty(batch, encoder.in_chans, height, width)
    if is_finetuning(cfg):
        return [image]
    patch = encoder.patch_size
    return [image, torch.empty(batch, height // patch, width // patch, dtype=torch.bool)]


def count_activations(
    cfg: CfgNode, model: Any, dtype: torch.dtype
) -> tuple[Activations, Activations]:
    """Of the whole model, and of the block that keeps most; from batches of two and of three."""
    encoder, blocks = getattr(model, "encoder", model), require_blocks(model, "tools.plan")
    two, three = (
        measure_activations(model, blocks, inputs_of(cfg, encoder, batch), dtype)
        for batch in (2, 3)
    )
    whole, block = (
        Activations(fixed=3 * low - 2 * high, per_image=high - low)
        for low, high in zip(two, three, strict=True)
    )
    return whole, block


def measure_activations(
    model: nn.Module, blocks: Iterable[nn.Module], inputs: list[Tensor], dtype: torch.dtype
) -> tuple[int, int]:
    """Bytes that one forward pass keeps, and those of the block that keeps most."""
    with count_saved(model) as saved, mixed_precision(model, torch.device("cpu"), dtype):
        before: list[int] = []
        sizes: list[int] = []
        hooks = []
        for block in blocks:
            hooks += [
                block.register_forward_pre_hook(lambda *_: before.append(sum(saved.values()))),
                block.register_forward_hook(
                    lambda *_: sizes.append(sum(saved.values()) - before[-1])
                ),
            ]
        model(*inputs)
        for hook in hooks:
            hook.remove()
    return sum(saved.values()), max(sizes)


@contextmanager
def count_saved(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps in the block, by address, without parameters."""
    own = [*model.parameters(), *model.buffers()]
    addresses = {tensor.untyped_storage()._cdata for tensor in own}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in addresses:
            saved[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_of(needs: Needs, gpus: int, sharded: bool) -> dict[str, int]:
    """Bytes on each GPU that do not depend on the batch, by kind."""
    share = gpus if sharded else 1
    kinds = {
        "weights": _FLOAT32 * needs.parameters // share,
        "gradients": _FLOAT32 * needs.parameters // share,
        "optimizer": 2 * _FLOAT32 * needs.parameters // share,
    }
    if sharded:  # whole: what lies outside of blocks, two blocks' weights, one block's gradients
        whole = 2 * needs.outside_blocks + 3 * needs.largest_block
        kinds["gathered weights and gradients"] = _FLOAT32 * whole
    return kinds


def largest_batch(memory: float, fixed: int, activations: Activations) -> int:
    """Images that fit into `memory` bytes, of which a tenth stays free; 0 where none fits."""
    room = memory * (1 - _RESERVE) - fixed - activations.fixed
    return max(int(room // activations.per_image), 0)


def plan_lines(
    cfg: CfgNode, needs: Needs, dtype: torch.dtype, gpus: int, memory: float
) -> list[str]:
    """The report."""
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
