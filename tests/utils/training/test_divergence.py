"""Losses and gradients that are not finite: skipped, counted, never saved, reproducible."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.samplers import epoch_order
from models import build_pretrain_model
from tests.support.kills import Scenario, finish, join, launch
from tests.support.one_epoch import run_epoch
from tests.support.small_runs import (
    call,
    checkpoint_of,
    metrics_of,
    pictures_in,
    run_folder,
    run_here,
    write_config,
    write_finetune_config,
)
from tools import replay
from utils.config import get_config, to_plain
from utils.training.divergence import split_among_processes

BAD = 5  # the picture that holds no numbers


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """32 arrays, of which one overflows when its numbers are normalized."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(32):
        pixels = random.random((40, 40, 3), dtype=np.float32)
        np.save(folder / f"{index:02}.npy", pixels * np.float32(3e38 if index == BAD else 1))
    return folder


def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: Path
) -> None:
    """The update before it and the one after it are those of a run that has other pictures."""
    opts = pictures_in(arrays, "SAVE_UPDATES", 1, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 0
    lines = metrics_of(tmp_path)
    (bad,) = (line for line in lines if line["loss"] is None)
    assert [line["skipped"] for line in lines] == [0] * bad["index"] + [1] * (8 - bad["index"])
    assert bad["grad_norm"] is None
    assert all(line["scale_adjustments"] == 0 for line in lines)
    finite = [line["loss"] for line in lines if line["loss"] is not None]
    assert lines[-1]["loss_mean"] == pytest.approx(sum(finite) / 7)
    log = (run_folder(tmp_path) / "log_rank0.txt").read_text()
    assert log.count("WARNING 1 update(s) of this epoch had a loss or gradient that") == 1
    state = checkpoint_of(tmp_path, 0)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert {int(moments["step"]) for moments in state["optimizer"]["state"].values()} == {7}
    assert state["update"] == 8


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_diverged_run_stops_and_one_command_computes_the_update_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arrays: Path,
    accumulation: int,
) -> None:
    opts = pictures_in(arrays, "TRAIN.MAX_SKIPPED", 1, "TRAIN.ACCUMULATION_STEPS", accumulation)
    opts += ["PRINT_FREQ", 3]  # it is noticed later than it happens
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 2
    error = capsys.readouterr().err
    found = re.fullmatch(
        r"error: training has diverged: loss or gradient of update (\d+) are not finite; the "
        r"weights are those before it .*; to see it again: python -m tools\.replay (\S+)\n",
        error,
    )
    assert found
    assert not list(run_folder(tmp_path).glob("ckpt*"))
    assert call(monkeypatch, replay, found[2]) == 0
    said = capsys.readouterr().out
    assert f"update {found[1]} in epoch 0" in said
    assert f"  not finite: {arrays / f'{BAD:02}.npy'}" in said
    assert "gradients that are not finite: encoder.mask_token" in said
    assert said.endswith("loss nan, gradient norm nan\n")


@pytest.mark.slow
def test_a_finite_update_of_a_bundle_has_the_loss_that_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What replays is the very update: here of fine-tuning, with Mixup, on two processes."""
    scenario = Scenario("finetune", 2, 2, "float32", 0)
    cfg, output = write_finetune_config(tmp_path), tmp_path / "out"
    # Weights that a finite first update has made infinite: the second has no finite loss.
    opts = ("TRAIN.BASE_LR", 1e38, "TRAIN.WARMUP_EPOCHS", 0, "SAVE_UPDATES", 0)
    assert join(launch(scenario, cfg, output, *opts, "TRAIN.MAX_SKIPPED", 2), 60) == [2, 2]
    folder = run_folder(output, name="finetune")
    (bundle,) = folder.glob("diverged_update_*.pth")
    assert bundle.name == "diverged_update_1.pth"
    state = torch.load(bundle, weights_only=True)
    assert [len(part) for part in state["diverged"]["samples"]] == [2, 2]
    # An update of a healthy run, as if it had diverged: its loss is that of the log.
    healthy = tmp_path / "healthy"
    finish(scenario, cfg, healthy, "SAVE_UPDATES", 5, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    logged = metrics_of(healthy, name="finetune")
    inside = run_folder(healthy, name="finetune") / "ckpt_epoch_0_update_5.pth"
    before, number = torch.load(inside, weights_only=True), 5
    images = before["progress"]["images"]
    samples = epoch_order(128, 0, 0)[images : images + 16].tolist()
    before["diverged"] = state["diverged"] | {
        "update": number,
        "epoch": 0,
        "samples": split_among_processes(samples, 2, 2),
    }
    torch.save(before, tmp_path / "bundle.pth")
    assert call(monkeypatch, replay, tmp_path / "bundle.pth") == 0
    loss, norm = re.findall(r"\nloss (\S+), gradient norm (\S+)\n", capsys.readouterr().out)[0]
    assert float(loss) == pytest.approx(logged[number]["loss"], rel=1e-5)
    assert float(norm) == pytest.approx(logged[number]["grad_norm"], rel=1e-4)


def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opts = ["--opts", "TRAIN.BASE_LR", 1e38, "TRAIN.WARMUP_EPOCHS", 0, "SAVE_UPDATES", 1]
    opts += ["TRAIN.PRECISION", "float32"]
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 2
    error = capsys.readouterr().err
    assert "weights or moments are not finite, training has diverged" in error
    assert "python -m tools.replay" in error
    assert not list(run_folder(tmp_path).glob("ckpt*"))


def test_a_scale_adjustment_does_not_count_as_divergence() -> None:
    """A loss scale that is too large makes gradients infinite, and is halved until it is not."""
    scaler, model = torch.amp.GradScaler("cpu", init_scale=2.0**126), torch.nn.Linear(5, 3)
    torch.nn.init.constant_(model.weight, 3.0)
    _, reports, _ = run_epoch(8, scaler=scaler, model=model)
    assert [report["skipped"] for report in reports] == [0] * 4
    assert reports[-1]["scale_adjustments"] in (1, 2, 3)
    assert math.isfinite(reports[-1]["loss_mean"])


def test_shares_of_an_update_are_those_of_the_loaders() -> None:
    assert split_among_processes(list(range(8)), 2, 2) == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


BUNDLE: dict[str, Any] = dict(update=6, epoch=0, samples=[[[0, 1, 2, 3]]], precision="float32")
BUNDLE["files"] = {index: f"shape {index}" for index in range(4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diverged": None}, "is not what a diverged run leaves"),
        ({"diverged": 1}, "is not what a diverged run leaves"),
        ({"diverged": []}, "is not what a diverged run leaves"),
        ({"diverged": {}}, "no valid diverged update"),
        ({"config": 3}, "no valid config"),
        ({"config": {"SEED": [1]}}, "SEED is [1], expected int"),
        ({"config": {"NO": 1}}, "unknown key NO"),
        ({"model": {}}, "holds no weights"),
        ({"model": {"x": torch.zeros(1)}}, "does not fit the model"),
        *(
            ({"diverged": BUNDLE | {key: value}}, message)
            for key, value, message in (
                ("update", -1, "no valid diverged update"),
                ("update", "6", "no valid diverged update"),
                ("epoch", 2**64, "no valid diverged epoch"),
                ("precision", ["float32"], "no valid diverged precision"),
                ("precision", "int8", "no valid diverged precision"),
                ("samples", [], "no valid diverged samples"),
                ("samples", [[0]], "no valid diverged samples"),
                ("samples", [[[]]], "no valid diverged samples"),
                ("samples", [[[0, 1, 2, 1.5]]], "no valid diverged samples"),
                ("samples", [[[0, 1, 2]]], "micro-batches of 3 pictures, its configuration says 4"),
                ("files", 0, "no valid diverged files"),
                ("samples", [[[0, 1, 2, 99]]], "picture 99 of a data set that has 32 now"),
            )
        ),
    ],
)
def test_replay_refuses_files_that_are_no_bundle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    cfg = get_config(write_config(tmp_path))
    model = build_pretrain_model(cfg).state_dict()
    bundle = {"model": model, "config": to_plain(cfg), "diverged": BUNDLE}
    torch.save(bundle, tmp_path / "good.pth")
    assert call(monkeypatch, replay, tmp_path / "good.pth") == 0
    capsys.readouterr()
    torch.save(bundle | change, tmp_path / "x.pth")
    assert call(monkeypatch, replay, tmp_path / "x.pth") == 2
    assert message in capsys.readouterr().err
