"""The command line's ends."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.kills import forked, free_port, join
from tests.support.pairs import place_of
from utils.files import RunFolder
from utils.processes.exit_status import run_program
from utils.processes.group import start_process_group, together


def test_ctrl_c_ends_with_status_130_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        run_program(interrupted)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_file_that_cannot_be_written_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_program(lambda: (tmp_path / "gone" / "file").touch())
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/gone/file: No such file or directory\n"


def test_other_errors_keep_their_traceback() -> None:
    def broken() -> None:
        raise RuntimeError("a mistake of the programmer")

    with pytest.raises(RuntimeError):
        run_program(broken)


def test_the_traceback_of_a_users_error_is_shown_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong() -> None:
        raise ValueError("two\nlines")

    monkeypatch.setenv("SIMMIM_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        run_program(wrong)
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error: two lines\n")


def program(rank: int, port: str, folder: Path, act: Callable[[int, Path], object]) -> None:
    """A program of two processes, each of which does something in a group."""
    os.dup2(os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(place_of(rank, port))

    def main() -> None:
        start_process_group(torch.device("cpu"), 20)
        act(rank, folder)

    run_program(main)


def ends_of(folder: Path, act: Callable[[int, Path], object]) -> list[int | None]:
    """Exit statuses of both processes; what they say is in FOLDER/RANK.log."""
    tasks = [(rank, port, folder, act) for port in [free_port()] for rank in (0, 1)]
    processes = [forked().Process(target=program, args=task) for task in tasks]
    for process in processes:
        process.start()
    return join(processes, 60)


def make_a_mistake(rank: int, folder: Path) -> None:
    raise TypeError("a mistake of the programmer")


@pytest.mark.slow
def test_other_errors_in_a_group_end_with_their_traceback_and_status_1(tmp_path: Path) -> None:
    """At once: while Python tidies up, gloo's threads can abort the process."""
    assert ends_of(tmp_path, make_a_mistake) == [1, 1]
    for rank in (0, 1):
        said = (tmp_path / f"{rank}.log").read_text().splitlines()
        assert said[0] == f"[rank{rank}]: Traceback (most recent call last):"
        assert said[-1] == f"[rank{rank}]: TypeError: a mistake of the programmer"


def press_ctrl_c(rank: int, folder: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_in_a_group_ends_with_status_130_at_once(tmp_path: Path) -> None:
    assert ends_of(tmp_path, press_ctrl_c) == [130, 130]
    assert (tmp_path / "0.log").read_text() == "interrupted\n"


def come_late(rank: int, folder: Path) -> None:
    """The second process writes when the first has nothing left to do; that one sees it."""
    if rank == 1:
        time.sleep(1)
        (folder / "late").touch()
    leave = os._exit

    def look_and_leave(status: int) -> None:
        (folder / f"{rank}.saw").write_text(str((folder / "late").exists()))
        leave(status)

    os._exit = look_and_leave  # type: ignore[assignment]  # which this one always calls


@pytest.mark.slow
def test_a_process_waits_at_its_end_for_the_slowest_one(tmp_path: Path) -> None:
    assert ends_of(tmp_path, come_late) == [0, 0]
    assert (tmp_path / "0.saw").read_text() == "True"


@pytest.mark.parametrize(
    ("count", "status", "advice"),
    [
        (None, 2, "stop that run, or give another --tag or --output"),
        ("0", 2, "stop that run, or give another --tag or --output"),
        ("1", 75, "what this job had started on a lost node: start it again later"),
    ],
)
def test_a_folder_in_use_is_an_error_but_a_job_that_was_requeued_tries_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: str | None,
    status: int,
    advice: str,
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    owner = RunFolder(tmp_path)
    owner.acquire()
    with pytest.raises(SystemExit) as exit_:
        run_program(RunFolder(tmp_path).acquire)
    owner.release()
    assert exit_.value.code == status
    assert advice in capsys.readouterr().err


def find_the_folder_in_use(rank: int, folder: Path) -> None:
    """What a requeued job may find, of whose processes the first locks the folder."""
    os.environ["SLURM_RESTART_COUNT"] = "1"
    together("the folder", lambda: RunFolder(folder).acquire() if rank == 0 else None)


@pytest.mark.slow
def test_all_processes_of_a_requeued_job_end_alike_where_the_folder_is_in_use(
    tmp_path: Path,
) -> None:
    owner = RunFolder(tmp_path)
    owner.acquire()
    assert ends_of(tmp_path, find_the_folder_in_use) == [75, 75]
    owner.release()
    assert "rank 0: error: output folder" in (tmp_path / "0.log").read_text()
    assert not (tmp_path / "1.log").read_text()
