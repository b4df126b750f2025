"""Pre-training at the command line: it learns, it resumes bit for bit, mistakes lose nothing."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.codebooks import write_tokenizer
from tests.support.pairs import run_processes
from tests.support.small_runs import (
    ROOT,
    call,
    checkpoint_of,
    equal,
    metrics_of,
    pictures_in,
    run_folder,
    run_here,
    snapshot,
    under_torchrun,
    write_config,
)
from tools import reconstruct

TRAIN_LINE = re.compile(
    r"Train: \[(\d+)/(\d+)\]\[(\d+)/(\d+)\]\teta \d+:\d\d:\d\d lr [\d.]+\ttime [\d.]+ \([\d.]+\)\t"
    r"loss [\d.]+ \([\d.]+\)\tgrad_norm [\d.]+ \([\d.]+\)\tmem \d+MB"
)


@pytest.mark.parametrize("kind", ["swin", "vit", "resnet"])
def test_a_run_leaves_everything_that_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    cfg = write_config(tmp_path, kind)
    assert run_here(monkeypatch, cfg, "--output", tmp_path, "--opts", "TRAIN.EPOCHS", 6) == 0
    folder = run_folder(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log_rank0.txt", "metrics.jsonl", "reconstruction.png"} < names
    assert {f"ckpt_epoch_{epoch}.pth" for epoch in range(6)} < names
    assert list((folder / "tensorboard").iterdir())
    assert Image.open(folder / "reconstruction.png").height > 8 * 100

    text = capsys.readouterr().out
    assert len(TRAIN_LINE.findall(text)) == 48
    start = text[: text.index("Train: ")]
    assert start.count("\n") <= 10
    assert f"recipe {cfg} with OUTPUT {tmp_path}, TRAIN.EPOCHS 6\n" in start
    log = (folder / "log_rank0.txt").read_text()
    assert "torch " + torch.__version__ in log
    assert (folder / "config.yaml").read_text() in log
    assert "effective batch size 4 (4 per process x 1 process(es) x 1 micro-batch(es))" in text
    assert "base lr 0.05 -> actual lr 0.000390625" in text

    metrics = metrics_of(tmp_path)
    assert [line["update"] for line in metrics] == list(range(48))
    means = [line["loss_mean"] for line in metrics if line["index"] == 7]
    assert means[-1] < 0.95 * means[0]
    assert {"lr", "grad_norm", "images_per_second", "data_wait", "memory_mb"} < set(metrics[0])


def test_a_run_that_goes_on_with_other_pictures_and_epochs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after 7 of the 8 updates of epoch 1; the epoch then begins with all pictures."""
    cfg, pictures = write_config(tmp_path), tmp_path / "pictures"
    pictures.mkdir()
    for index in range(16):
        Image.effect_noise((40, 40), 80).convert("RGB").save(pictures / f"{index}.png")
    run: list[Any] = ["--output", tmp_path, "--batch-size", 2, *pictures_in(pictures)]
    run += ["SAVE_UPDATES", 5, "PICTURE_FREQ", 0, "TRAIN.EPOCHS"]
    assert run_here(monkeypatch, cfg, *run, 2) == 0
    assert checkpoint_of(tmp_path, 1)["data"]["images"] == 16
    (run_folder(tmp_path) / "ckpt_epoch_1.pth").unlink()
    Image.effect_noise((40, 40), 80).convert("RGB").save(pictures / "16.png")
    capsys.readouterr()
    assert run_here(monkeypatch, cfg, *run, 4) == 0
    said = capsys.readouterr().out
    assert "ckpt_epoch_1_update_15.pth: epoch 1, update 15, 14 of its images" in said
    assert "the data are 17 pictures, the checkpoint's 16; epoch 1, which was begun" in said
    assert re.search(
        r"another schedule .*: TRAIN\.EPOCHS 2 -> 4; the learning rate was \S+ in", said
    )
    begun = [line for line in metrics_of(tmp_path) if line["epoch"] == 1 and line["update"] >= 15]
    assert [line["index"] for line in begun] == list(range(8))
    assert checkpoint_of(tmp_path, 3)["update"] == 8 + 7 + 3 * 8
    assert checkpoint_of(tmp_path, 3)["data"]["images"] == 17


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("swin", []),
        ("swin", ["--accumulation-steps", 2, "--amp-opt-level", "O0"]),
        ("resnet", ["--use-checkpoint"]),
    ],
)
def test_one_epoch_and_a_resumed_one_are_two_epochs_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, extra: list[Any]
) -> None:
    cfg = write_config(tmp_path, kind)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    opts = ["--opts", "DATA.NUM_WORKERS", 1, "TRAIN.PRECISION", "bfloat16"]
    opts = ["--opts"] if extra else opts
    assert run_here(monkeypatch, cfg, "--output", straight, *extra, *opts, "SEED", 1) == 0
    assert run_here(monkeypatch, cfg, "--output", stopped, *extra, *opts, "SEED", 1) == 0
    (run_folder(stopped) / "ckpt_epoch_1.pth").unlink()  # as if it had been stopped in epoch 1
    torch.manual_seed(99)
    assert run_here(monkeypatch, cfg, "--output", stopped, *extra, *opts, "SEED", 1) == 0
    states = [checkpoint_of(folder, 1) for folder in (straight, stopped)]
    for state in states:
        del state["config"]["OUTPUT"]  # all that may differ
    assert equal(*states)
    losses = [[line["loss"] for line in metrics_of(folder)] for folder in (straight, stopped)]
    assert losses[0] == losses[1]
    log = (run_folder(stopped) / "log_rank0.txt").read_text()
    assert "resumed from" in log
    assert "epoch 1, update" in log


def test_a_run_without_the_srun_that_its_job_expects_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", "/home")
    opts = ("--opts", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "PICTURE_FREQ", 0)
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 0
    told = "Slurm's job has 8 tasks, of which this is one process alone: srun python ..."
    assert told in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_are_one_process_with_twice_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = write_config(tmp_path, "vit")
    same = ["--amp-opt-level", "O0", "--opts", "MODEL.DROP_PATH_RATE", 0.0]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_here(monkeypatch, cfg, "--output", one, "--batch-size", 8, *same) == 0
    result = under_torchrun(2, cfg, "--output", two, "--batch-size", 4, *same)
    assert result.returncode == 0, result.stderr
    expected, found = checkpoint_of(one, 1), checkpoint_of(two, 1)
    for name, weight in expected["model"].items():
        torch.testing.assert_close(found["model"][name], weight, rtol=1e-4, atol=1e-6)
    pairs = zip(metrics_of(one), metrics_of(two), strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-5) for a, b in pairs)
    assert "effective batch size 8 (4 per process x 2 process(es)" in result.stdout
    assert (run_folder(two) / "log_rank1.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_two_processes_resume_and_accumulate(tmp_path: Path, kind: str) -> None:
    cfg = write_config(tmp_path, kind)
    arguments = ["--output", tmp_path, "--accumulation-steps", 2, "--use-checkpoint"]
    statuses, said = run_processes(2, cfg, *arguments)
    assert statuses == [0, 0], said
    expected = checkpoint_of(tmp_path, 1)
    (run_folder(tmp_path) / "ckpt_epoch_1.pth").unlink()
    statuses, said = run_processes(2, cfg, *arguments)
    assert statuses == [0, 0], said
    assert equal(checkpoint_of(tmp_path, 1), expected)
    assert len(metrics_of(tmp_path)) == 4


@pytest.mark.parametrize("kind", ["swin", "swinv2", "vit", "resnet", "convnext"])
def test_grey_pictures_that_are_not_square_train_and_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    section = f"MODEL.{kind.upper()}"
    opts = ["TRAIN.EPOCHS", 1, "DATA.IMG_SIZE", "[32,56]", f"{section}.IN_CHANS", 1]
    opts += ["DATA.MEAN", "[0.5]", "DATA.STD", "[0.25]"]
    cfg = write_config(tmp_path, kind)
    assert run_here(monkeypatch, cfg, "--output", tmp_path, "--opts", *opts) == 0
    assert all(math.isfinite(record["loss"]) for record in metrics_of(tmp_path))
    with Image.open(run_folder(tmp_path) / "reconstruction.png") as picture:
        row = np.asarray(picture.convert("RGB"))[60]
    assert (row.max(axis=1) == row.min(axis=1)).all()  # grey


MISTAKES: dict[str, tuple[list[Any], str]] = {
    "unknown key": (["--opts", "TRAIN.EPOCH", 3], r"unknown key TRAIN\.EPOCH; did you mean"),
    "unknown encoder": (
        ["--opts", "MODEL.TYPE", "resnet101"],
        "MODEL.TYPE is 'resnet101'; choices: swin, swinv2, vit, resnet, convnext",
    ),
    "unknown decoder": (["--opts", "MODEL.SIMMIM.DECODER", "deep"], "choices: linear"),
    "too small for the stages": (
        ["--opts", "DATA.IMG_SIZE", 4, "DATA.MASK_PATCH_SIZE", 4],
        r"DATA\.IMG_SIZE is 4, too small for 2 stages and patches of 4: expected at least 8",
    ),
    "three sides": (["--opts", "DATA.IMG_SIZE", "[8,8,8]"], r"expected int or \[height, width\]"),
    "a side that does not divide": (
        ["--opts", "DATA.IMG_SIZE", "[32,36]"],
        r"DATA\.IMG_SIZE is 36, which DATA\.MASK_PATCH_SIZE = 8 does not divide",
    ),
    "heads and width": (
        ["--opts", "MODEL.TYPE", "swinv2", "MODEL.SWINV2.NUM_HEADS", "[3,2]"],
        r"the width of stage 0 is 16, which MODEL\.SWINV2\.NUM_HEADS = 3 does not divide",
    ),
    "windows of other stages": (
        ["--opts", "MODEL.TYPE", "swinv2", "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", "[4,4,2]"],
        "expected one number for each of the 2 stages",
    ),
    "channels": (["--opts", "MODEL.SWIN.IN_CHANS", 4], "IN_CHANS is 4, but the data set shapes"),
    "statistics": (["--opts", "MODEL.SWIN.IN_CHANS", 1], r"DATA\.MEAN is .*expected one number"),
    "image and mask": (
        ["--opts", "DATA.MASK_PATCH_SIZE", 12],
        "DATA.IMG_SIZE is 32.*MASK_PATCH_SIZE = 12.*24 or 36",
    ),
    "mask and patch": (
        ["--opts", "DATA.MASK_PATCH_SIZE", 2],
        "DATA.MASK_PATCH_SIZE is 2.*PATCH_SIZE = 4.*nearest legal: 4",
    ),
    "window of nothing": (["--opts", "MODEL.SWIN.WINDOW_SIZE", 0], "WINDOW_SIZE is 0, expected"),
    "no heads": (["--opts", "MODEL.SWIN.NUM_HEADS", "[0,2]"], "NUM_HEADS is 0, expected at least"),
    "no room": (
        ["--opts", "MODEL.SWIN.EMBED_DIM", 90000],
        r"has 6\.48e\+11 weights, more than",
    ),
    "no data path": (["--opts", "DATA.DATASET", "imagenet"], "DATA_PATH is empty"),
    "missing data path": (
        ["--data-path", "/nowhere", "--opts", "DATA.DATASET", "imagenet"],
        "DATA_PATH /nowhere is not a folder",
    ),
    "few images": (["--batch-size", 33], "holds 32 images, fewer than one update needs: 33"),
    "fine-tuning's key": (["--opts", "PRETRAINED", "x.pth"], "are for fine-tuning"),
    "averaged weights": (["--opts", "TRAIN.EMA_DECAY", 0.99], "TRAIN.EMA_DECAY are for fine-tun"),
    "no such checkpoint": (["--resume", "/nowhere.pth"], "/nowhere.pth does not exist"),
    "no checkpoint": (["--resume", __file__], "test_main_simmim.py is damaged, or no checkpoint"),
    "another model": (["--opts", "MODEL.TYPE", "vit"], "does not fit the model: .*is missing"),
    "other shapes": (
        ["--opts", "MODEL.SWIN.EMBED_DIM", 32],
        r"mask_token has shape \(1, 1, 16\), the model \(1, 1, 32\)",
    ),
    "no permission": (["--output", "/proc/nowhere"], "output folder .* cannot be written"),
    "file in the way": (["--output", __file__], "output folder .* cannot be written"),
    "no GPU": (["--device", "cuda"], "no CUDA GPU"),
    "float16": (["--opts", "TRAIN.PRECISION", "float16"], "needs a CUDA GPU"),
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, which mistakes must leave as it is."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_here(monkeypatch, write_config(folder), "--output", folder) == 0
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_in_one_line_and_changes_nothing(
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    arguments, message = MISTAKES[name]
    before = snapshot(finished_run)
    status = run_here(monkeypatch, write_config(finished_run), "--output", finished_run, *arguments)
    captured = capsys.readouterr()
    assert status == 2
    assert re.search(message, captured.err)
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert snapshot(finished_run) == before


def test_a_broken_picture_in_a_workers_hands_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    arguments = ["--output", tmp_path / "out", "--data-path", tmp_path, "--opts"]
    arguments += ["DATA.DATASET", "imagenet", "DATA.NUM_WORKERS", 1]
    assert run_here(monkeypatch, write_config(tmp_path), *arguments) == 2
    assert re.fullmatch(
        r"error: \S+\.png cannot be read as a picture: .*\n", capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_program_itself_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "main_simmim.py", "--cfg", str(tmp_path / "none.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert result.returncode == 2
    assert result.stderr == f"error: config file {tmp_path / 'none.yaml'} does not exist\n"


TOKENS: list[Any] = ["MODEL.SIMMIM.TARGET", "tokens", "MODEL.SIMMIM.LOSS", "cross_entropy"]
TOKENS += ["MODEL.SIMMIM.TOKENS.PATCH_SIZE", 8, "MODEL.SIMMIM.TOKENS.VOCABULARY", 11]


def test_a_run_learns_tokens_and_draws_no_pictures_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, path = write_config(tmp_path), write_tokenizer(tmp_path / "x.onnx")
    flags = ["--output", tmp_path, "--opts", *TOKENS, "MODEL.SIMMIM.TOKENS.FILE", path]
    assert run_here(monkeypatch, cfg, *flags) == 0
    assert "the target tokens is no picture" in capsys.readouterr().out
    assert not (run_folder(tmp_path) / "reconstruction.png").exists()
    picture = tmp_path / "out.png"
    assert call(monkeypatch, reconstruct, "--cfg", cfg, "--picture", picture, *flags) == 2
    error = capsys.readouterr().err
    assert error == "error: the target tokens is no picture: its predictions cannot be drawn\n"
    assert not picture.exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DECODER", "unet"], "DECODER is 'unet'; choices: linear, mlp, inverse_swin_tiny"),
        (
            ["DECODER", "inverse_swin_tiny", "TARGET_SHRINK", 4],
            "_tiny and inverse_swin_base enlarge features by 4, 8, 16 or 32, and here 2",
        ),
        (["LOSS", "l3"], "LOSS is 'l3'; choices: l1, l2, smooth_l1, cross_entropy"),
        (["LOSS", "cross_entropy"], "cross_entropy does not fit"),
        (["TARGET", "tokens", "LOSS", "cross_entropy"], "needs MODEL.SIMMIM.TOKENS.FILE"),
        (["TARGET", "color_clusters", "LOSS", "cross_entropy"], "needs .*CODEBOOK"),
        (["TARGET", "color_bins", "COLOR_BINS.NUMBER", 257], "NUMBER is 257, expected from 2 to"),
        (["TARGET_SHRINK", 3], "TARGET_SHRINK is 3; choices: 1, 2, 4, 8, 16, 32"),
    ],
)
def test_a_part_that_does_not_fit_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    opts: list[Any],
    message: str,
) -> None:
    keys = [word if index % 2 else f"MODEL.SIMMIM.{word}" for index, word in enumerate(opts)]
    flags = ["--output", tmp_path / "runs", "--opts", *keys]
    assert run_here(monkeypatch, write_config(tmp_path), *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "runs").exists()
