"""Checkpoints: whole or not at all, plain types only, and they must fit."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lr_scheduler import build_scheduler
from tests.support.small_runs import ROOT
from tests.support.training_parts import (
    CPU,
    IMAGES,
    UPDATES,
    parts_of,
    resumed_epoch,
    save_epoch,
    train_a_little,
)
from utils.checkpoints.contents import load_checkpoint, newest_checkpoint, save_checkpoint
from utils.checkpoints.names import epoch_path
from utils.checkpoints.resume import resume
from utils.checkpoints.saving import Saver
from utils.checkpoints.state import TrainState
from utils.config import get_config
from utils.files import RunFolder
from utils.processes.group import equal_in_all_processes

SAVE_ON_A_FULL_DISK = """
import pathlib, resource, signal, sys, torch
from utils.checkpoints.contents import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_checkpoint(pathlib.Path(sys.argv[1]), {"model": torch.zeros(100_000)})
except ValueError as error:
    print(error)
"""


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    parts, fresh, cfg = parts_of(), parts_of(), get_config()
    train_a_little(parts)
    save_epoch(epoch_path(tmp_path, 7), 7, parts, cfg)
    assert (tmp_path / "ckpt_epoch_7.pth").exists()
    start = resume(RunFolder(tmp_path), fresh, cfg, UPDATES, CPU)
    assert fresh.position.epoch == 8
    assert "resumed from" in start.notes[0]
    assert torch.equal(fresh.model.get_parameter("weight"), parts.model.get_parameter("weight"))
    moments = [part.optimizer.state_dict()["state"][0]["exp_avg"] for part in (parts, fresh)]
    assert torch.equal(*moments)
    assert fresh.position.update == 80


def test_a_parameter_without_gradients_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    def with_an_unused_part() -> TrainState:
        parts = parts_of()
        parts.model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
        parts.optimizer = torch.optim.AdamW(parts.model.parameters(), fused=True)
        return parts

    parts, fresh = with_an_unused_part(), with_an_unused_part()
    train_a_little(parts)
    saver = Saver(RunFolder(tmp_path), parts, get_config(), print, print)
    saver.save_epoch(0)
    saver.wait()
    resume(RunFolder(tmp_path), fresh, get_config(), UPDATES, CPU)
    assert torch.equal(fresh.model.get_parameter("weight"), parts.model.get_parameter("weight"))


def test_checkpoints_hold_tensors_and_plain_types_only(tmp_path: Path) -> None:
    save_epoch(path := tmp_path / "any.pth", 0, parts_of(), get_config())
    state = torch.load(path, weights_only=True)
    assert type(state["config"]) is dict
    assert state["config"]["TRAIN"]["OPTIMIZER"]["BETAS"] == [0.9, 0.999]
    assert {"epoch", "update", "seed", "scaler"} < set(state)


@pytest.mark.slow
def test_a_save_that_fails_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    """The disk is full: files of this process may hold no more than 4 KiB."""
    path = tmp_path / "ckpt_epoch_0.pth"
    save_checkpoint(path, {"model": 1})
    before = path.read_bytes()
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "cannot be written" in result.stdout, result.stderr
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_newest_readable_checkpoint_is_found_by_epoch(tmp_path: Path) -> None:
    for epoch in (2, 9, 10):
        save_epoch(epoch_path(tmp_path, epoch), epoch, parts_of(), get_config())
    whole = (tmp_path / "ckpt_epoch_10.pth").read_bytes()
    (tmp_path / "ckpt_epoch_10.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / ".ckpt_epoch_11.pth.77.tmp").write_bytes(whole)
    warnings: list[str] = []
    path, state = newest_checkpoint(tmp_path, warnings.append)
    assert path == tmp_path / "ckpt_epoch_9.pth"
    assert state is not None
    assert state["epoch"] == 9
    assert len(warnings) == 1
    assert "ckpt_epoch_10.pth is damaged" in warnings[0]


def test_going_back_to_an_earlier_checkpoint_asks_for_another_folder(tmp_path: Path) -> None:
    for epoch in (3, 5):
        save_epoch(epoch_path(tmp_path, epoch), epoch, parts_of(), get_config())
    cfg = get_config(None, ["MODEL.RESUME", str(tmp_path / "ckpt_epoch_3.pth")])
    with pytest.raises(ValueError, match=r"ckpt_epoch_5\.pth, which is not from a run that was "):
        resume(RunFolder(tmp_path), parts_of(), cfg, UPDATES, CPU)
    assert resumed_epoch(RunFolder(tmp_path / "other"), cfg) == 4
    cfg = get_config(None, ["MODEL.RESUME", str(tmp_path / "ckpt_epoch_5.pth")])
    assert resumed_epoch(RunFolder(tmp_path), cfg) == 6


def test_a_run_that_went_back_goes_on_from_its_own_later_checkpoints(tmp_path: Path) -> None:
    first, second = tmp_path / "first", RunFolder(tmp_path / "second")
    first.mkdir()
    for epoch in (3, 5):
        save_epoch(epoch_path(first, epoch), epoch, parts_of(), get_config())
    cfg = get_config(None, ["MODEL.RESUME", str(first / "ckpt_epoch_3.pth")])
    start = resume(second, parts_of(), cfg, UPDATES, CPU)
    second.path.mkdir()
    start.settle(second)
    # Stopped before its first save, then after it.
    assert resumed_epoch(second, cfg) == 4
    save_epoch(epoch_path(second.path, 4), 4, parts_of(), cfg)
    start = resume(second, parts := parts_of(), cfg, UPDATES, CPU)
    assert parts.position.epoch == 5
    assert "this run was started from" in start.notes[0]
    (first / "ckpt_epoch_3.pth").unlink()  # as an old one
    assert resumed_epoch(second, cfg) == 5
    # Another file is another run.
    other = get_config(None, ["MODEL.RESUME", str(first / "ckpt_epoch_5.pth")])
    with pytest.raises(ValueError, match="would be overwritten: give another --tag"):
        resume(second, parts_of(), other, UPDATES, CPU)


def test_a_checkpoint_that_another_run_has_written_meanwhile_ends_the_start(tmp_path: Path) -> None:
    start = resume(RunFolder(tmp_path), parts_of(), get_config(), UPDATES, CPU)
    save_epoch(epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    with pytest.raises(ValueError, match="another run has changed the checkpoints"):
        start.settle(RunFolder(tmp_path))


def test_checkpoints_of_an_earlier_run_are_not_overwritten(tmp_path: Path) -> None:
    save_epoch(epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    cfg = get_config(None, ["TRAIN.AUTO_RESUME", False])
    with pytest.raises(ValueError, match="another --tag"):
        resume(RunFolder(tmp_path), parts_of(), cfg, UPDATES, CPU)


def test_another_model_is_refused_with_the_first_differences(tmp_path: Path) -> None:
    save_epoch(epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    other = parts_of(width=6)
    before = other.model.get_parameter("weight").clone()
    with pytest.raises(ValueError, match=r"weight has shape \(2, 4\), the model \(2, 6\)"):
        resume(RunFolder(tmp_path), other, get_config(), UPDATES, CPU)
    assert torch.equal(other.model.get_parameter("weight"), before)


def test_settings_of_the_optimizer_stay_those_of_the_configuration(tmp_path: Path) -> None:
    save_epoch(epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    changed = parts_of()
    changed.optimizer.param_groups[0]["weight_decay"] = 0.3
    resume(RunFolder(tmp_path), changed, get_config(), UPDATES, CPU)
    assert changed.optimizer.param_groups[0]["weight_decay"] == 0.3


def test_with_another_update_size_data_and_schedule_go_on_at_the_same_part(tmp_path: Path) -> None:
    parts, cfg = parts_of(), get_config(None, ["TRAIN.EPOCHS", 20])
    save_epoch(epoch_path(tmp_path, 9), 9, parts, cfg)
    other = parts_of()
    other.position.images_per_update = 2 * IMAGES
    other.scheduler = build_scheduler(cfg, other.optimizer, UPDATES // 2)
    start = resume(RunFolder(tmp_path), other, cfg, UPDATES // 2, CPU)
    assert "an update is now 8 images and an epoch 5 updates (an update was 4" in start.notes[1]
    assert other.position.update == 100  # so many were made
    assert other.position.place_in_schedule == 50  # half of the schedule's 100
    save_epoch(epoch_path(tmp_path, 9), 9, other, cfg)
    again = parts_of()
    again.position.images_per_update = 2 * IMAGES
    assert len(resume(RunFolder(tmp_path), again, cfg, UPDATES // 2, CPU).notes) == 1
    assert again.position.place_in_schedule == 50


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    parts, cfg = parts_of(), get_config(None, ["TRAIN.EPOCHS", 20])
    save_epoch(epoch_path(tmp_path, 19), 19, parts, cfg)
    start = resume(RunFolder(tmp_path), parts_of(), cfg, UPDATES, CPU)
    assert "nothing is left to train" in start.notes[1]


def test_a_start_epoch_starts_the_schedule_there(tmp_path: Path) -> None:
    parts, cfg = parts_of(), get_config(None, ["TRAIN.START_EPOCH", 10])
    resume(RunFolder(tmp_path), parts, cfg, UPDATES, CPU)
    assert (parts.position.epoch, parts.position.update) == (10, 100)
    assert parts.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 99 / 200, rel=1e-3)


def test_another_seed_is_noticed(tmp_path: Path) -> None:
    save_epoch(epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    start = resume(RunFolder(tmp_path), parts_of(), get_config(None, ["SEED", 5]), UPDATES, CPU)
    assert "SEED is 5" in start.notes[1]


class Attack:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or no checkpoint: it is empty"),
        (b"no checkpoint", "is damaged, or no checkpoint: it is text"),
        (pickle.dumps(Attack()), "cannot be read"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


def test_a_file_without_training_state_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no epoch, lr_scheduler, optimizer"):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "y.pth")


def test_one_process_agrees_with_itself() -> None:
    assert equal_in_all_processes(3, CPU)
