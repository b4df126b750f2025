"""What a run goes on from: nothing whole is set aside, and no run begins again by itself."""

import errno
import fcntl
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small_runs import ROOT, metrics_of, run_folder, run_here, snapshot, write_config
from tests.support.training_parts import (
    CPU,
    UPDATES,
    parts_of,
    resumed_epoch,
    save_epoch,
    train_a_little,
)
from utils.checkpoints.contents import load_checkpoint
from utils.checkpoints.names import epoch_path
from utils.checkpoints.resume import resume
from utils.checkpoints.saving import Saver, keep
from utils.checkpoints.state import TrainState
from utils.config import get_config
from utils.files import DamagedError, RunFolder, write_again

NOBODY = 65534


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_here(monkeypatch, write_config(folder), "--output", folder) == 0
    return folder


def saver_of(folder: Path, parts: TrainState, *opts: Any) -> Saver:
    """It saves into a folder, says nothing, and warns of nothing."""
    return Saver(RunFolder(folder), parts, get_config(None, opts), lambda line: None, pytest.fail)


def as_nobody(function: Callable[..., Any], *arguments: Any) -> str:
    """What a function's ValueError says in a process that only may what all may."""

    def work(results: Any) -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        try:
            results.put(str(function(*arguments)))
        except ValueError as error:
            results.put(str(error))

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(results,))
    process.start()
    said = results.get()
    process.join()
    return str(said)


def test_a_checkpoint_that_the_disk_cannot_read_ends_the_run_and_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    finished: Path,
) -> None:
    """Reading the memory of a process at address 0 is an I/O error."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    newest = run_folder(tmp_path) / "ckpt_epoch_1.pth"
    newest.rename(tmp_path / "kept")
    newest.symlink_to("/proc/self/mem")
    names = sorted(path.name for path in run_folder(tmp_path).iterdir())
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path) == 2
    said = capsys.readouterr().err
    assert f"checkpoint {newest} cannot be read: Input/output error" in said
    assert sorted(path.name for path in run_folder(tmp_path).iterdir()) == names


@pytest.mark.slow
def test_a_checkpoint_without_permission_to_read_does_not_count_as_damaged(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    for parent in tmp_path.parents[:-2]:
        os.chmod(parent, 0o755)
    for epoch in (0, 1):
        save_epoch(epoch_path(tmp_path, epoch), epoch, parts_of(), get_config())
    os.chmod(epoch_path(tmp_path, 1), 0)
    said = as_nobody(resume, RunFolder(tmp_path), parts_of(), get_config(), UPDATES, CPU)
    assert said.endswith("ckpt_epoch_1.pth cannot be read: Permission denied")


def test_where_no_checkpoint_can_be_used_the_run_does_not_begin_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    finished: Path,
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for epoch in (0, 1):
        path = epoch_path(run_folder(tmp_path), epoch)
        path.write_bytes(path.read_bytes()[:-100])
    names = sorted(path.name for path in run_folder(tmp_path).iterdir())
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path) == 2
    said = capsys.readouterr().err
    assert "none of the 2 checkpoint(s) in" in said
    assert "to begin anew on purpose move them away, or give another --tag or --output" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in run_folder(tmp_path).iterdir()) == names


def test_moments_of_another_optimizer_are_an_error_that_says_which(tmp_path: Path) -> None:
    parts = parts_of()
    train_a_little(parts)
    save_epoch(epoch_path(tmp_path, 0), 0, parts, get_config())
    other = parts_of()
    other.optimizer = torch.optim.SGD(other.model.parameters(), momentum=0.9)
    before = other.model.get_parameter("weight").clone()
    message = "it holds exp_avg, exp_avg_sq, step, TRAIN.OPTIMIZER.NAME here keeps momentum_buffer"
    with pytest.raises(ValueError, match=message):
        resume(RunFolder(tmp_path), other, get_config(), UPDATES, CPU)
    assert torch.equal(other.model.get_parameter("weight"), before)
    assert epoch_path(tmp_path, 0).exists()


def test_what_a_moment_is_called_is_no_sign_of_damage(tmp_path: Path) -> None:
    parts = parts_of()
    train_a_little(parts)
    save_epoch(path := epoch_path(tmp_path, 0), 0, parts, get_config())
    content = load_checkpoint(path)
    content["optimizer"]["state"][0] = {"zip archive: unsupported": torch.zeros(1)}
    torch.save(content, path)
    with pytest.raises(
        ValueError, match="does not fit the optimizer: it holds zip archive"
    ) as error:
        resume(RunFolder(tmp_path), parts_of(), get_config(), UPDATES, CPU)
    assert not isinstance(error.value, DamagedError)


def test_moments_are_found_by_the_names_of_their_parameters(tmp_path: Path) -> None:
    """Also where the parameters come in another order and in other groups."""

    def with_names(order: list[list[str]]) -> TrainState:
        parts = parts_of()
        parts.model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)})
        own = dict(parts.model.named_parameters())
        groups = [{"params": [own[name] for name in names], "names": names} for names in order]
        parts.optimizer = torch.optim.AdamW(groups, fused=True)
        return parts

    parts = with_names([["a.weight", "b.weight"], ["a.bias", "b.bias"]])
    for index, parameter in enumerate(parts.model.parameters()):
        parameter.grad = torch.full_like(parameter, index + 1.0)
    parts.optimizer.step()
    save_epoch(epoch_path(tmp_path, 0), 0, parts, get_config())
    other = with_names([["b.bias"], ["b.weight", "a.bias", "a.weight"]])
    resume(RunFolder(tmp_path), other, get_config(), UPDATES, CPU)
    for name, parameter in other.model.named_parameters():
        own = parts.model.get_parameter(name)
        expected = parts.optimizer.state[own]["exp_avg"]
        assert torch.equal(other.optimizer.state[parameter]["exp_avg"], expected)


def test_where_only_the_best_checkpoint_is_left_the_run_goes_on_from_it(tmp_path: Path) -> None:
    saver = saver_of(tmp_path, parts_of())
    saver.state.position.complete_epoch()
    saver.save_epoch(0, due=False, best=True)
    saver.wait()
    start = resume(RunFolder(tmp_path), parts := parts_of(), get_config(), UPDATES, CPU)
    assert parts.position.epoch == 1
    assert f"resumed from {tmp_path}/best.pth" in start.notes[0]


def test_a_run_that_was_moved_is_still_the_one_that_its_command_began(tmp_path: Path) -> None:
    folder, moved = tmp_path / "one", tmp_path / "two"
    folder.mkdir()
    save_epoch(epoch_path(folder, 1), 1, parts_of(), get_config())
    run = RunFolder(folder)
    cfg = get_config(None, ["MODEL.RESUME", str(epoch_path(folder, 1))])
    resume(run, parts_of(), cfg, UPDATES, CPU).settle(run)
    save_epoch(epoch_path(folder, 2), 2, parts_of(), get_config())
    run.release()
    folder.rename(moved)
    cfg = get_config(None, ["MODEL.RESUME", str(epoch_path(moved, 1))])
    assert resumed_epoch(RunFolder(moved), cfg) == 3
    # A run that begins anew there was not started from that file.
    for path in moved.glob("ckpt*"):
        path.rename(tmp_path / path.name)
    fresh = RunFolder(moved)
    resume(fresh, parts_of(), get_config(), UPDATES, CPU).settle(fresh)
    assert fresh.remembered()["started_from"] == ""


def test_what_is_restored_lies_in_tensors_of_its_own(tmp_path: Path) -> None:
    """A fused optimizer writes where it takes its moments to lie."""
    parts = parts_of()
    train_a_little(parts)
    save_epoch(path := epoch_path(tmp_path, 0), 0, parts, get_config())
    state = load_checkpoint(path)
    moments = state["optimizer"]["state"][0]
    moments["exp_avg"] = moments["exp_avg"].double().T.contiguous().T
    torch.save(state, path)
    fresh = parts_of()
    resume(RunFolder(tmp_path), fresh, get_config(), UPDATES, CPU)
    found = fresh.optimizer.state[fresh.model.get_parameter("weight")]["exp_avg"]
    assert found.is_contiguous()
    assert found.dtype == torch.float32
    assert torch.equal(found, moments["exp_avg"].float())
    moments["exp_avg"] = torch.ones(1, 1).expand(2, 4)
    torch.save(state, path)
    with pytest.raises(ValueError, match="repeats its numbers"):
        resume(RunFolder(tmp_path), parts_of(), get_config(), UPDATES, CPU)


def test_the_checkpoint_of_another_stage_says_which_program_goes_on(tmp_path: Path) -> None:
    save_epoch(path := epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    state = load_checkpoint(path)
    torch.save(state | {"best": {"acc1": 1.0, "epoch": 0}, "classes": ["a"]}, path)
    with pytest.raises(ValueError, match=r"is one of fine-tuning: main_finetune\.py goes on"):
        resume(RunFolder(tmp_path), parts_of(), get_config(), UPDATES, CPU)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("update",), -1),
        (("update",), 10**30),
        (("epoch",), -2),
        (("epoch",), 1.5),
        (("progress", "images"), -5),
        (("progress", "images_per_update"), True),
        (("progress", "figures"), [[float("inf")] * 8]),
        (("progress", "figures"), 3),
        (("lr_scheduler", "num_steps"), "7"),
        (("lr_scheduler", "offset"), 2**60),
        (("lr_scheduler",), [1]),
        (("lr_scheduler", "lr"), float("nan")),
        (("data",), [16, "aa"]),
        (("data",), {"images": 16}),
        (("data",), {"images": -1, "digest": "aa"}),
        (("data",), {"images": 16, "digest": 3}),
        (("classes",), ["a", 3]),
        (("optimizer", "param_groups"), {}),
        (("optimizer", "state", 0, "step"), torch.tensor(float("nan"))),
        (("optimizer", "state", 0, "step"), torch.tensor(-1.0)),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(2, 4, dtype=torch.complex64)),
        (("model", "weight"), torch.zeros(2, 4, dtype=torch.int64)),
    ],
    ids=str,
)
def test_an_impossible_value_in_a_checkpoint_is_refused_in_one_line(
    tmp_path: Path, place: Any, value: Any
) -> None:
    parts = parts_of()
    train_a_little(parts)
    save_epoch(path := epoch_path(tmp_path, 0), 0, parts, get_config())
    state = load_checkpoint(path)
    section = state
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"\Acheckpoint [^\n]*ckpt_epoch_0\.pth[^\n]{10,300}\Z"):
        resume(RunFolder(tmp_path), parts_of(), get_config(), UPDATES, CPU)
    assert path.exists()


def test_a_state_that_cannot_be_read_back_is_an_error_when_it_is_saved(tmp_path: Path) -> None:
    class Scaler(torch.amp.GradScaler):
        """Its state is an object, which no reader takes."""

        def state_dict(self) -> dict[str, Any]:
            return {"x": Path}

    parts = parts_of()
    parts.scaler = Scaler("cpu")
    saver = saver_of(tmp_path, parts)
    saver.save_epoch(0)
    with pytest.raises(ValueError, match="what was just written cannot be read back: checkpoint"):
        saver.wait()


def test_the_best_epoch_is_one_file_with_two_names(tmp_path: Path) -> None:
    saver = saver_of(tmp_path, parts_of())
    saver.save_epoch(0, due=True, best=True)
    saver.save_epoch(1, due=False, best=True)
    saver.save_epoch(2, due=True)
    saver.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pth",
        "ckpt_epoch_0.pth",
        "ckpt_epoch_2.pth",
    ]
    assert epoch_path(tmp_path, 0).stat().st_nlink == 1
    saver.save_epoch(3, due=True, best=True)
    saver.wait()
    assert (tmp_path / "best.pth").samefile(epoch_path(tmp_path, 3))


@pytest.mark.slow
def test_an_old_checkpoint_that_cannot_be_deleted_gives_a_warning(tmp_path: Path) -> None:
    for epoch in range(3):
        epoch_path(tmp_path, epoch).touch()
    for parent in tmp_path.parents[:-2]:
        os.chmod(parent, 0o755)
    os.chmod(tmp_path, 0o555)
    warnings: list[str] = []

    def keep_one() -> list[str]:
        keep(tmp_path, 1, 0, warnings.append)
        return warnings

    said = as_nobody(keep_one)
    assert said.count("is no longer needed and cannot be removed: Permission denied") == 2
    assert epoch_path(tmp_path, 0).exists()


def test_damaged_checkpoints_never_take_each_others_names(tmp_path: Path) -> None:
    names = [f"ckpt_epoch_1.pth.bad{number}" for number in ("", "2")]
    for name in names:
        (tmp_path / name).write_text(name)
    save_epoch(epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    epoch_path(tmp_path, 1).write_text("damaged")
    folder = RunFolder(tmp_path)
    resume(folder, parts_of(), get_config(), UPDATES, CPU).settle(folder)
    assert [(tmp_path / name).read_text() for name in names] == names
    assert (tmp_path / "ckpt_epoch_1.pth.bad1").read_text() == "damaged"


def test_a_folder_of_damaged_checkpoints_alone_does_not_begin_again(tmp_path: Path) -> None:
    save_epoch(epoch_path(tmp_path, 0), 0, parts_of(), get_config())
    bad = epoch_path(tmp_path, 0).rename(tmp_path / "ckpt_epoch_0.pth.bad")
    with pytest.raises(ValueError, match=r"holds no checkpoint but ckpt_epoch_0\.pth\.bad"):
        resume(RunFolder(tmp_path), parts_of(), get_config(), UPDATES, CPU)
    bad.rename(epoch_path(tmp_path, 0))
    assert resumed_epoch(RunFolder(tmp_path), get_config()) == 1


def test_a_run_says_so_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    for _ in range(2):  # nothing that a killed run leaves keeps the folder
        folder = RunFolder(tmp_path)
        folder.acquire()
        assert folder.unlocked.endswith(
            ": no lock (Function not implemented); start one run at a time there"
        )


def test_a_copy_in_place_of_a_second_name_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    flushed: list[int] = []
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_size))
    (tmp_path / "a").write_bytes(b"x" * 12345)
    write_again(tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert flushed[0] == 12345


def test_a_folder_is_locked_before_anybody_looks_into_it(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    resume(first, parts_of(), get_config(), UPDATES, CPU)
    with pytest.raises(ValueError, match=rf"is in use by 'process {os.getpid()} on "):
        resume(second, parts_of(), get_config(), UPDATES, CPU)


@pytest.mark.slow
def test_only_leftovers_of_dead_processes_are_removed_from_a_folder(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        text=True,
        capture_output=True,
        check=True,
    ).stdout.strip()
    left = [f".ckpt_epoch_3.pth.{dead}.tmp", f".best.pth.{dead}.tmp"]
    left += [f".ckpt_epoch_4.pth.{os.getpid()}.tmp"]  # of an earlier one, in a container
    others = [f".ckpt_epoch_3.pth.{os.getppid()}.tmp", f".weights_epoch_3.pth.{dead}.tmp", ".x.tmp"]
    for name in (*left, *others):
        (tmp_path / name).touch()
    RunFolder(tmp_path).acquire()
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & set(left)
    assert names >= set(others)


@pytest.mark.slow
def test_a_run_whose_folder_is_replaced_writes_nothing_into_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "main_simmim.py", "--cfg", str(write_config(tmp_path))]
    opts = ["TRAIN.EPOCHS", "2000", "PICTURE_FREQ", "0", "KEEP_LAST", "1"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path), "--opts", *opts],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        folder = run_folder(tmp_path)
        for _ in itertools.takewhile(lambda _: not (folder / "metrics.jsonl").exists(), range(900)):
            time.sleep(0.1)
        new = tmp_path / "new"  # made whole, with its lock, before the run can see it
        (new / "tensorboard").mkdir(parents=True)
        (new / "metrics.jsonl").touch()
        RunFolder(new).acquire()
        folder.rename(tmp_path / "moved")
        new.rename(folder)
        _, said = process.communicate(timeout=90)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.returncode == 2
    assert "was removed and made again, by another run: nothing more is written there" in said
    assert not list(folder.glob("ckpt*"))
    assert metrics_of(tmp_path) == []


def test_a_mistake_changes_nothing_in_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = snapshot(run_folder(tmp_path))
    first = run_folder(tmp_path) / "ckpt_epoch_0.pth"
    arguments = ["--output", tmp_path, "--resume", first]
    assert run_here(monkeypatch, write_config(tmp_path), *arguments) == 2
    assert snapshot(run_folder(tmp_path)) == before
