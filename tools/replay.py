"""Compute the update at which a run diverged again, and say where its numbers stop being finite.

python -m tools.replay diverged_update_N.pth [--data-path DIR] [--device cpu]
"""

import argparse
from pathlib import Path

from utils.arguments import make_parser, read_early


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("-m tools.replay", __doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="diverged_update_N.pth")
    parser.add_argument("--data-path", metavar="DIR", help="where the pictures are now")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="[auto]")
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from yacs.config import CfgNode

from data import build_batch_augmentation, build_pretrain_dataset, build_train_dataset
from main_finetune import finetune_loss
from main_simmim import pretrain_loss
from models import build_classifier, build_pretrain_model
from utils.checkpoint import restore_model
from utils.config import config_of
from utils.device import choose_device, choose_precision
from utils.distributed import UPDATE_STREAM, seed_all
from utils.program import run_program
from utils.safe_load import model_weights, read_checkpoint
from utils.sharding import clip_gradients, mixed_precision
from utils.training import ComputeLoss

_NAMED = 3


def main() -> None:
    """Read the bundle, compute, print."""
    arguments = read_arguments()
    state = read_checkpoint(arguments.bundle)
    if not isinstance(state, dict) or "diverged" not in state:
        raise ValueError(f"{arguments.bundle} is not what a diverged run leaves")
    opts = ["DEVICE", arguments.device, "DATA.NUM_WORKERS", 0]
    opts += ["DATA.DATA_PATH", arguments.data_path] if arguments.data_path else []
    cfg = config_of(state["config"], str(arguments.bundle), opts)
    replay(state, cfg, arguments.bundle)


def replay(state: dict[str, Any], cfg: CfgNode, source: Path) -> None:
    """The forward and backward passes of all processes, one after the other."""
    device, bad = choose_device(cfg.DEVICE), state["diverged"]
    dtype = choose_precision(bad["precision"], device)
    dataset, model, compute_loss = build(state, cfg, device)
    restore_model(model_weights(state, source, ("model",)), model, source)
    model.to(device).train()
    print(f"update {bad['update']} in epoch {bad['epoch']}, in {bad['precision']}")
    losses = []
    number = sum(len(micro_batches) for micro_batches in bad["samples"])
    for rank, micro_batches in enumerate(bad["samples"]):
        for micro_batch, samples in enumerate(micro_batches):
            batch = default_collate([dataset[bad["epoch"], index] for index in samples])
            seed_all(UPDATE_STREAM, cfg.SEED, bad["update"], micro_batch, rank)
            with mixed_precision(model, device, dtype):
                loss = compute_loss(model, [part.to(device) for part in batch])
            (loss / number).backward()
            losses.append(loss.item())
            print(f"process {rank}, micro-batch {micro_batch}: loss {losses[-1]:.6g}")
            for line in broken_inputs(batch[0], samples, bad["files"]):
                print(line)
    for line in broken_gradients(model):
        print(line)
    norm = float(clip_gradients(model, float("inf")))
    print(f"loss {sum(losses) / number:.6g}, gradient norm {norm:.6g}")


def build(
    state: dict[str, Any], cfg: CfgNode, device: torch.device
) -> tuple[Any, nn.Module, ComputeLoss]:
    """Data set, model and loss of the run's stage."""
    if "best" not in state:
        model = build_pretrain_model(cfg)
        dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)
        return dataset, model, pretrain_loss(dataset.normalize)
    labelled = build_train_dataset(cfg)
    augment = build_batch_augmentation(cfg, len(labelled.classes), device)
    classifier = build_classifier(cfg, len(labelled.classes))
    return labelled, classifier, finetune_loss(cfg, labelled.normalize, augment)


def broken_inputs(image: Tensor, samples: list[int], files: dict[int, str]) -> list[str]:
    """Names of samples whose pictures hold numbers that are not finite."""
    finite = image.float().isfinite().flatten(1).all(dim=1).tolist()
    return [
        f"  not finite: {files[index]}"
        for index, good in zip(samples, finite, strict=True)
        if not good
    ]


def broken_gradients(model: nn.Module) -> list[str]:
    """Which parameters' gradients are not finite."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"gradients that are not finite: {', '.join(names[:_NAMED])}{more}"]


if __name__ == "__main__":
    run_program(main)
