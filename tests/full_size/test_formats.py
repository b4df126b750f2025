"""Files of published size in every form that people have, read through the programs."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from yacs.config import CfgNode

from models import build_classifier, build_pretrain_model, load_pretrained
from optimizer import build_optimizer
from tests.full_size.programs import FINETUNE, PRETRAIN, ROOT, run
from tests.support.small_runs import equal
from utils.checkpoints.contents import load_checkpoint, save_checkpoint
from utils.checkpoints.reading import read_checkpoint
from utils.checkpoints.resume import resume
from utils.checkpoints.saving import Saver
from utils.config import get_config, to_plain
from utils.device import choose_device
from utils.files import RunFolder
from utils.training.run import Run, build_state

pytestmark = pytest.mark.full_size

CPU = torch.device("cpu")
LARGE = "configs/swin_large__800ep/simmim_finetune__swin_large__img224_window14__800ep.yaml"
HUGE = "configs/swinv2_huge__800ep/simmim_finetune__swinv2_huge__img224_window14__800ep.yaml"
IN_ONE_PROCESS = {
    "ViT-B": "vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml",
    "SwinV2-B": "swinv2_base__800ep/simmim_pretrain__swinv2_base__img192_window12__800ep.yaml",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files do not outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def with_moments(model: nn.Module, recipe: str) -> torch.optim.Optimizer:
    """The recipe's optimizer after an update with gradients of ones."""
    optimizer = build_optimizer(get_config(ROOT / recipe), model, 1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def published(model: nn.Module, recipe: str) -> dict[str, Any]:
    """What the authors' files hold: pickled objects, apex's state, the optimizer with moments."""
    cfg = get_config(ROOT / recipe)
    return {
        "model": dict(model.state_dict()),
        "optimizer": with_moments(model, recipe).state_dict(),
        "lr_scheduler": {"base_values": [1e-4, 1e-4], "metric": None, "t_in_epochs": False},
        "max_accuracy": np.float64(83.5),
        "epoch": 99,
        "config": CfgNode(to_plain(cfg)),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}},
    }


def validation_of(folder: Path) -> list[Any]:
    """Arguments for four pictures without class folders, and a list of their classes' indices."""
    (folder / "val").mkdir()
    for index in range(4):
        Image.new("RGB", (50, 40), (60 * index, 90, 30)).save(folder / f"val/{index}.jpg")
    (folder / "labels.txt").write_text(
        "".join(f"{index}.jpg {300 * index}\n" for index in range(4))
    )
    opts = ["DATA.DATASET", "imagenet", "DATA.VAL_LABELS", folder / "labels.txt"]
    return ["--data-path", folder, "--opts", *opts, "DATA.NUM_WORKERS", 0]


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
def test_the_authors_files_of_swin_b_start_and_are_evaluated(
    folder: Path, old_format: bool
) -> None:
    cfg = get_config(ROOT / FINETUNE)
    pretrained, finetuned = folder / "pretrained.pth", folder / "finetuned.pth"
    torch.manual_seed(0)
    model = build_pretrain_model(get_config(ROOT / PRETRAIN))
    torch.save(
        published(model, PRETRAIN), pretrained, _use_new_zipfile_serialization=not old_format
    )
    classifier = build_classifier(cfg, 1000)
    report = load_pretrained(classifier, pretrained)
    assert report.initialized == ("head.weight", "head.bias")
    encoder: Any = model.encoder
    own = encoder.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in classifier.state_dict().items()
               if not name.startswith("head"))  # fmt: skip
    pretrained.unlink()
    torch.save(
        published(classifier, FINETUNE), finetuned, _use_new_zipfile_serialization=not old_format
    )
    assert finetuned.stat().st_size > 1.05e9
    words = ["main_finetune.py", "--eval", "--cfg", FINETUNE, "--resume", finetuned]
    words += ["--device", "cpu", "--batch-size", 4, "--output", folder]
    assert re.search(r"\* Acc@1 \d+\.\d{3}", run(*words, *validation_of(folder)))


def test_swin_l_with_its_optimizer_is_read_and_evaluated(folder: Path) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(get_config(ROOT / LARGE), 1000)
    torch.save(published(classifier, LARGE), path := folder / "large.pth")
    del classifier
    assert path.stat().st_size > 2.3e9
    words = ["main_finetune.py", "--eval", "--cfg", LARGE, "--resume", path, "--device", "cpu"]
    words += ["--batch-size", 2, "--output", folder]
    assert re.search(r"\* Acc@1 \d+\.\d{3}", run(*words, *validation_of(folder)))


def test_the_weights_of_swinv2_h_are_read(folder: Path) -> None:
    with torch.device("meta"):
        shapes = build_classifier(get_config(ROOT / HUGE), 1000).state_dict()
    weights = {name: torch.empty(value.shape).fill_(0.5) for name, value in shapes.items()}
    torch.save({"model": weights}, path := folder / "huge.pth")
    assert path.stat().st_size > 2.6e9
    found = read_checkpoint(path)["model"]
    assert equal(found, weights)


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_what_is_saved_is_restored(folder: Path, name: str) -> None:
    cfg = get_config(ROOT / "configs" / IN_ONE_PROCESS[name])
    run_ = Run(cfg, choose_device("cpu"), torch.float32, RunFolder(folder))
    torch.manual_seed(0)
    parts = build_state(run_, build_pretrain_model(cfg), 2)
    for parameter in parts.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    parts.optimizer.step()
    for _ in range(2):  # as many updates as an epoch has
        parts.position.complete_update()
    parts.scheduler.set_rates(parts.position.place_in_schedule)
    parts.position.complete_epoch()
    saver = Saver(run_.output, parts, cfg, lambda line: None, pytest.fail)
    saver.save_epoch(0)
    saver.wait()
    torch.manual_seed(1)
    fresh = build_state(run_, build_pretrain_model(cfg), 2)
    resume(run_.output, fresh, cfg, 2, CPU)
    assert fresh.position.epoch == 1
    for one, other in ((fresh.model, parts.model), (fresh.optimizer, parts.optimizer)):
        assert equal(one.state_dict(), other.state_dict())
    assert fresh.position == parts.position


def test_ten_times_as_many_values_as_any_checkpoint_has_are_read(folder: Path) -> None:
    """Of 3 billion parameters in 3,000 tensors, 21,841 classes, 512 processes' figures."""
    state = {
        "model": {f"layers.{index}.weight": torch.zeros(1) for index in range(30_000)},
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"num_steps": 5_000_000, "offset": 0},
        "scaler": {},
        "epoch": 8000,
        "update": 5_000_000,
        "classes": [f"n{index:08}" for index in range(218_410)],
        "progress": {
            "epoch": 8001,
            "images": 700_000_000,
            "images_per_update": 163_840,
            "figures": [[0.5] * 8] * 5120,
        },
    }
    save_checkpoint(path := folder / "many.pth", state)
    found = load_checkpoint(path)
    assert equal(found, state)
