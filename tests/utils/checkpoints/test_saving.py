"""Checkpoints of a run: which are kept, what damaged ones lead to, full disks, background."""

import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small_runs import (
    checkpoint_of,
    equal,
    metrics_of,
    run_folder,
    run_here,
    write_config,
)
from tests.support.training_parts import parts_of, train_a_little
from utils.checkpoints.names import checkpoints_in, epoch_path, inside_path
from utils.checkpoints.saving import Saver, keep
from utils.config import get_config
from utils.files import RunFolder


def flipped(path: Path) -> None:
    """One bit, in the middle of the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "flipped": flipped,
    "without its directory's end": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with a checkpoint inside the second one, as if it had been stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as monkeypatch:
        opts = ["--opts", "SAVE_UPDATES", 5]
        assert run_here(monkeypatch, write_config(folder), "--output", folder, *opts) == 0
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stopped: Path,
    name: str,
) -> None:
    expected = checkpoint_of(stopped, 1)
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    newest = run_folder(tmp_path) / "ckpt_epoch_1.pth"
    DAMAGES[name](newest)
    damaged = newest.read_bytes()
    cfg = write_config(tmp_path)
    assert run_here(monkeypatch, cfg, "--output", tmp_path, "--opts", "SAVE_UPDATES", 5) == 0
    said = capsys.readouterr().out
    assert f"WARNING: checkpoint {newest} " in said
    assert "; set aside as ckpt_epoch_1.pth.bad, using the one before" in said
    assert f"resumed from {run_folder(tmp_path)}/ckpt_epoch_1_update_15.pth" in said
    assert newest.with_name("ckpt_epoch_1.pth.bad").read_bytes() == damaged
    found = checkpoint_of(tmp_path, 1)
    for state in (expected, found):
        state["config"].pop("OUTPUT", None)
    assert equal(found, expected)
    assert [line["update"] for line in metrics_of(tmp_path)] == list(range(16))


def test_nothing_is_set_aside_where_another_model_is_configured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stopped: Path,
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    names = sorted(path.name for path in run_folder(tmp_path).iterdir())
    opts = ["--opts", "MODEL.SWIN.EMBED_DIM", 32]
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 2
    assert "ckpt_epoch_1.pth does not fit the model" in capsys.readouterr().err
    assert sorted(path.name for path in run_folder(tmp_path).iterdir()) == names


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """Call it to have no file grow beyond 200 KB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_ends_the_run_in_one_line_and_earlier_checkpoints_are_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stopped: Path,
    full_disk: Callable[[], None],
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (run_folder(tmp_path) / "ckpt_epoch_1.pth").unlink()
    before = {path: path.read_bytes() for path in checkpoints_in(run_folder(tmp_path))}
    full_disk()
    arguments = ["--output", tmp_path, "--opts", "TRAIN.EPOCHS", 9]
    assert run_here(monkeypatch, write_config(tmp_path), *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run_folder(tmp_path)}/ckpt_epoch_1.pth cannot be written: ")
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in checkpoints_in(run_folder(tmp_path))} == before
    assert not list(run_folder(tmp_path).glob(".*.tmp"))


@pytest.mark.parametrize(
    ("last", "every", "expected"),
    [
        (0, 0, {0, 1, 2, 3, 4, 5, 6}),
        (2, 0, {5, 6}),
        (1, 3, {0, 3, 6}),
        (3, 4, {0, 4, 5, 6}),
    ],
)
def test_as_many_checkpoints_are_kept_as_configured(
    tmp_path: Path, last: int, every: int, expected: set[int]
) -> None:
    for epoch in range(7):
        epoch_path(tmp_path, epoch).touch()
        for update in (1, 2):
            inside_path(tmp_path, epoch, 10 * epoch + update).touch()
    inside_path(tmp_path, 7, 71).touch()
    (tmp_path / "best.pth").touch()
    (tmp_path / "ckpt_epoch_3.pth.bad").touch()
    keep(tmp_path, last, every, pytest.fail)
    names = {path.name for path in tmp_path.iterdir()} - {"best.pth", "ckpt_epoch_3.pth.bad"}
    assert names == {f"ckpt_epoch_{epoch}.pth" for epoch in expected} | {
        "ckpt_epoch_7_update_71.pth"
    }


def test_names_are_ordered_by_epoch_then_update_and_the_end_comes_last(tmp_path: Path) -> None:
    names = ["ckpt_epoch_9.pth", "ckpt_epoch_10_update_99.pth", "ckpt_epoch_10_update_100.pth"]
    names += ["ckpt_epoch_10.pth", "ckpt_epoch_11_update_101.pth"]
    for name in [*names, "ckpt_epoch_x.pth", "ckpt_epoch_12.pth.bad", "best.pth"]:
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == names[::-1]


def test_what_is_written_is_the_state_of_the_moment_and_training_does_not_wait(
    tmp_path: Path,
) -> None:
    """The writer is busy for a second: a save returns at once, the next one waits for it."""
    parts = parts_of()
    train_a_little(parts)
    saver = Saver(RunFolder(tmp_path), parts, get_config(), print, print)
    weights = parts.model.get_parameter("weight").detach().clone()
    saver.writer.submit(time.sleep, 1.0)
    start = time.perf_counter()
    saver.save_epoch(0)
    assert time.perf_counter() - start < 0.5
    assert not epoch_path(tmp_path, 0).exists()
    train_a_little(parts)
    assert not torch.equal(parts.model.get_parameter("weight"), weights)
    saver.save_epoch(1)  # at most one is pending
    assert time.perf_counter() - start > 0.9
    saver.wait()
    stored = torch.load(epoch_path(tmp_path, 0), weights_only=True)
    assert torch.equal(stored["model"]["weight"], weights)
    assert epoch_path(tmp_path, 1).exists()


@pytest.mark.slow
def test_a_run_saves_after_the_configured_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that saves every 0.001 minutes: at least at every fifth update of 20 ms."""
    opts = ["--opts", "SAVE_MINUTES", 0.001, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    opts += ["DATA.NUM_SHAPES", 320, "SAVE_FREQ", 5]
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 0
    log = (run_folder(tmp_path) / "log_rank0.txt").read_text()
    assert log.count("_update_") >= 5
    assert len(checkpoints_in(run_folder(tmp_path))) == 2
