"""Small real runs of both programs: in this process, in another, or under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import main_simmim
from utils.processes.exit_status import run_program

ROOT = Path(__file__).parents[2]
TINY = """
MODEL: {NAME: pretrain, TYPE: %s, DROP_PATH_RATE: 0.2,
  SWIN: {PATCH_SIZE: 4, EMBED_DIM: 16, DEPTHS: [2, 1], NUM_HEADS: [1, 2], WINDOW_SIZE: 4},
  SWINV2: {PATCH_SIZE: 4, EMBED_DIM: 16, DEPTHS: [2, 1], NUM_HEADS: [1, 2], WINDOW_SIZE: 4},
  VIT: {PATCH_SIZE: 8, EMBED_DIM: 16, DEPTH: 2, NUM_HEADS: 2},
  RESNET: {LAYERS: [1, 1]},
  CONVNEXT: {DEPTHS: [2, 1], DIMS: [16, 32]}}
DATA: {DATASET: shapes, NUM_SHAPES: 32, NUM_VAL_SHAPES: 37, IMG_SIZE: 32, MASK_PATCH_SIZE: 8,
  BATCH_SIZE: 4, NUM_WORKERS: 0}
AUG: {AUTO_AUGMENT: none, CROP_SCALE: [0.5, 1.0]}
TRAIN: {EPOCHS: 2, WARMUP_EPOCHS: 1, BASE_LR: 0.05}
PRINT_FREQ: 1
DEVICE: cpu
TAG: tiny
"""


def write_config(folder: Path, kind: str = "swin") -> Path:
    """The smallest configuration that has everything; its file."""
    path = folder / f"{kind}.yaml"
    path.write_text(TINY % kind)
    return path


def write_finetune_config(folder: Path, kind: str = "swin") -> Path:
    """The same encoder as a classifier; its file."""
    path = folder / f"{kind}_finetune.yaml"
    path.write_text(
        f"BASE: {write_config(folder, kind).name}\n"
        "MODEL: {NAME: finetune, VIT: {USE_RPB: true, USE_SHARED_RPB: false, "
        "USE_MEAN_POOLING: true}}\n"
        "TRAIN: {LAYER_DECAY: 0.8}\n"
    )
    return path


def pictures_in(folder: Path, *opts: Any) -> list[Any]:
    """Arguments of a run on the pictures of a folder, then options; they come last."""
    return ["--data-path", folder, "--opts", "DATA.DATASET", "imagenet", *opts]


def run_folder(folder: Path, tag: str = "tiny", name: str = "pretrain") -> Path:
    """Where a run with `--output folder` keeps its files."""
    return folder / name / tag


def call(monkeypatch: pytest.MonkeyPatch, program: Any, *arguments: Any) -> int:
    """Exit status of a program (a module with `main`) in this process."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
    try:
        run_program(program.main)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def run_here(
    monkeypatch: pytest.MonkeyPatch, cfg: Path, *arguments: Any, program: Any = main_simmim
) -> int:
    """Exit status of an entry point in this process."""
    return call(monkeypatch, program, "--cfg", cfg, *arguments)


def under_torchrun(
    number: int, cfg: Path, *arguments: Any, program: str = "main_simmim.py"
) -> subprocess.CompletedProcess[str]:
    """The program under torchrun with `number` processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(number), *program.split(), "--cfg", str(cfg)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def metrics_of(folder: Path, tag: str = "tiny", name: str = "pretrain") -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    lines = (run_folder(folder, tag, name) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def checkpoint_of(
    folder: Path, epoch: int, tag: str = "tiny", name: str = "pretrain"
) -> dict[str, Any]:
    """A run's checkpoint."""
    path = run_folder(folder, tag, name) / f"ckpt_epoch_{epoch}.pth"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def equal(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, but which process looked into it last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path): path.read_bytes() for path in files}
