"""Logs, metrics and TensorBoard: what is written, and what a resumed run replaces."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from logger import RunLog, train_line
from tests.support.log_records import CURVES, record


def test_the_line_has_the_references_format() -> None:
    line = train_line(record(3, time_mean=600.0, memory_mb=1234.4, lr=1e-4), epoch=2, epochs=9)
    assert line == (
        "Train: [2/9][3/10]\teta 1:00:00 lr 0.000100\ttime 0.5000 (600.0000)\t"
        "loss 0.5000 (0.5000)\tgrad_norm 0.5000 (0.5000)\tmem 1234MB"
    )


def test_figures_reach_file_console_metrics_and_tensorboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, rank=0, first_update=0, first_epoch=0, epochs=2)
    with log.epoch(1):
        log.report(record(7, loss=0.25))
    log.picture("reconstruction", Image.new("RGB", (8, 4), "red"))
    log.close()
    assert "loss 0.2500" in capsys.readouterr().out
    assert "loss 0.2500" in (tmp_path / "log_rank0.txt").read_text()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["epoch"], line["update"], line["loss"]) == (1, 7, 0.25)
    assert Image.open(tmp_path / "reconstruction.png").size == (8, 4)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {f"train/{name}" for name in CURVES}
    assert board.Tags()["images"] == ["reconstruction"]
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(7, 0.25)]


def test_skipped_updates_are_told_once_in_every_epoch(tmp_path: Path) -> None:
    log = RunLog(tmp_path, rank=0, first_update=0, first_epoch=0, epochs=2)
    for epoch in range(2):
        with log.epoch(epoch):
            log.report(record(2 * epoch, skipped=1))
            log.report(record(2 * epoch + 1, skipped=1))
    log.close()
    assert (tmp_path / "log_rank0.txt").read_text().count(
        "1 update(s) of this epoch had a loss"
    ) == 2


def test_other_processes_write_their_own_file_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, rank=3, first_update=0, first_epoch=0, epochs=2)
    log.report(record(0))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log_rank3.txt"]
    assert capsys.readouterr().out == ""


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"update": update, "loss": 1.0}) for update in range(6)]
    validation = {"update": 3, "val_loss": 1.0}  # of an epoch that is complete, and of another
    lines += [json.dumps(validation | {"epoch": epoch}) for epoch in (0, 1)]
    path.write_text("\n".join(lines) + '\n{"update": 6, "lo')
    RunLog(tmp_path, rank=0, first_update=4, first_epoch=1, epochs=2).close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["update"] for line in kept] == [0, 1, 2, 3, 3]
    assert kept[-1] == validation | {"epoch": 0}


def test_no_progress_bar_is_drawn_without_a_terminal(tmp_path: Path) -> None:
    log = RunLog(tmp_path, rank=0, first_update=0, first_epoch=0, epochs=2)
    assert log.progress(range(3)) == range(3)
    log.close()


def test_the_time_left_counts_an_epoch_that_was_begun_earlier_as_a_whole_one(
    tmp_path: Path,
) -> None:
    log = RunLog(tmp_path, rank=0, first_update=0, first_epoch=0, epochs=3)
    with log.epoch(0, share=0.25):
        time.sleep(1.05)
    log.close()
    written = (tmp_path / "log_rank0.txt").read_text()
    assert "EPOCH 0 training takes 0:00:01, about 0:00:08 left" in written
