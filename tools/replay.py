"""Recompute the update at which a run diverged, and name what is not finite in it.

python -m tools.replay diverged_update_N.pth [--data-path DIR] [--device cpu]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from utils.config.arguments import make_parser, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.replay", __doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="diverged_update_N.pth")
    parser.add_argument("--data-path", metavar="DIR", help="where the pictures are now")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="[auto]")
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)


import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from yacs.config import CfgNode

from data import build_batch_augmentation, build_pretrain_dataset, build_train_dataset
from data.datasets import LabelledDataset, PretrainDataset
from models import build_classifier, build_criterion, build_pretrain_model
from utils.checkpoints.reading import Content, model_weights, read_checkpoint
from utils.checkpoints.state import restore_model
from utils.config import config_of
from utils.device import PRECISIONS, choose_precision
from utils.messages import one_of
from utils.processes.exit_status import run_program
from utils.processes.sharding import clip_gradients, mixed_precision
from utils.randomness import UPDATE_STREAM, seed_all
from utils.training.losses import ComputeLoss, finetune_loss, pretrain_loss
from utils.training.run import set_up_device

_NAMED = 3


def main() -> None:
    """Read the bundle, recompute the update, print its numbers."""
    arguments = read_arguments()
    state = read_bundle(arguments.bundle)
    opts = ["DEVICE", arguments.device, "DATA.NUM_WORKERS", 0]
    opts += ["DATA.DATA_PATH", arguments.data_path] if arguments.data_path else []
    cfg = config_of(state["config"], str(arguments.bundle), opts)
    replay(state, cfg, arguments.bundle)


def read_bundle(path: Path) -> Content:
    """Read the bundle of a diverged run; ValueError where a part is missing or invalid."""
    state = read_checkpoint(path)
    if not isinstance(state, dict) or not isinstance(state.get("diverged"), dict):
        raise ValueError(f"{path} is not what a diverged run leaves")
    bad = state["diverged"]
    shares = bad.get("samples")
    is_nested = _is_list_of(shares, lambda share: _is_list_of(share, _is_numbers))
    precision = bad.get("precision")
    wrong = {
        "config": not isinstance(state.get("config"), dict),
        "diverged update": not _is_number(bad.get("update")),
        "diverged epoch": not _is_number(bad.get("epoch")),
        "diverged samples": not is_nested,
        "diverged files": not isinstance(bad.get("files"), dict),
        "diverged precision": not isinstance(precision, str) or precision not in PRECISIONS,
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"{path} is not what a diverged run leaves: no valid {name}")
    return state


def _is_list_of(value: object, is_part: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_part, value))


def _is_numbers(value: object) -> bool:
    return _is_list_of(value, _is_number)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def replay(state: Content, cfg: CfgNode, source: Path) -> None:
    """Repeat the forward and backward passes of all processes, one after the other."""
    device, bad = set_up_device(cfg), state["diverged"]
    dtype = choose_precision(bad["precision"], device)
    dataset, model, compute_loss = build(state, cfg, device)
    restore_model(model_weights(state, source, ("model",)), model, source)
    model.to(device).train()
    _require_fit(bad, cfg.DATA.BATCH_SIZE, len(dataset), source)
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
            for line in broken_inputs(dataset.normalize(batch[0]), samples, bad["files"]):
                print(line)
    for line in broken_gradients(model):
        print(line)
    norm = float(clip_gradients(model, float("inf")))
    print(f"loss {sum(losses) / number:.6g}, gradient norm {norm:.6g}")


def _require_fit(bad: Content, batch_size: int, num_pictures: int, source: Path) -> None:
    """Raise ValueError unless micro-batches fit the configuration and the current data set."""
    micro_batches = [samples for share in bad["samples"] for samples in share]
    sizes = {len(samples) for samples in micro_batches}
    if sizes != {batch_size}:
        raise ValueError(
            f"{source} holds micro-batches of {one_of(sorted(sizes))} pictures, its configuration "
            f"says {batch_size} (DATA.BATCH_SIZE)"
        )
    last = max(max(samples) for samples in micro_batches)
    if last >= num_pictures:
        raise ValueError(
            f"{source} names picture {last} of a data set that has {num_pictures} now (--data-path)"
        )


def build(
    state: Content, cfg: CfgNode, device: torch.device
) -> tuple[PretrainDataset | LabelledDataset, nn.Module, ComputeLoss]:
    """Build data set, model and loss of the run's stage."""
    if "best" not in state:
        model = build_pretrain_model(cfg)
        dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)
        return dataset, model, pretrain_loss(dataset.normalize)
    labelled = build_train_dataset(cfg)
    augment = build_batch_augmentation(cfg, len(labelled.classes), device)
    classifier = build_classifier(cfg, len(labelled.classes))
    criterion = build_criterion(cfg, soft_targets=augment.mixup is not None)
    return labelled, classifier, finetune_loss(criterion, labelled.normalize, augment)


def broken_inputs(image: Tensor, samples: list[int], files: dict[int, str]) -> list[str]:
    """Lines that name samples with pixels that are not finite once they are normalized."""
    finite = image.float().isfinite().flatten(1).all(dim=1).tolist()
    return [
        f"  not finite: {files.get(index, index)}"
        for index, good in zip(samples, finite, strict=True)
        if not good
    ]


def broken_gradients(model: nn.Module) -> list[str]:
    """A line that names parameters with gradients that are not finite; [] without any."""
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
