"""The command line's ends."""

import os
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


def fail_in_a_group(rank: int, port: str, folder: Path) -> None:
    """A program with a mistake that only a group's process meets."""
    os.dup2(os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(place_of(rank, port))

    def main() -> None:
        start_process_group(torch.device("cpu"), 20)
        raise TypeError("a mistake of the programmer")

    run_program(main)


@pytest.mark.slow
def test_other_errors_in_a_group_end_with_their_traceback_and_status_1(tmp_path: Path) -> None:
    """At once: while Python tidies up, gloo's threads can abort the process."""
    port = free_port()
    processes = [forked().Process(target=fail_in_a_group, args=(n, port, tmp_path)) for n in (0, 1)]
    for process in processes:
        process.start()
    assert join(processes, 60) == [1, 1]
    for rank in (0, 1):
        said = (tmp_path / f"{rank}.log").read_text().splitlines()
        assert said[0].startswith("Traceback")
        assert said[-1] == "TypeError: a mistake of the programmer"


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


def find_the_folder_in_use(number: int, port: str, folder: Path) -> None:
    """A program of a requeued job, of whose processes the first locks the folder."""
    os.dup2(os.open(folder / f"{number}.log", os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(place_of(number, port) | {"SLURM_RESTART_COUNT": "1"})

    def main() -> None:
        start_process_group(torch.device("cpu"), 20)
        together("the folder", lambda: RunFolder(folder).acquire() if number == 0 else None)

    run_program(main)


@pytest.mark.slow
def test_all_processes_of_a_requeued_job_end_alike_where_the_folder_is_in_use(
    tmp_path: Path,
) -> None:
    port, owner = free_port(), RunFolder(tmp_path)
    owner.acquire()
    tasks = [(number, port, tmp_path) for number in (0, 1)]
    processes = [forked().Process(target=find_the_folder_in_use, args=task) for task in tasks]
    for process in processes:
        process.start()
    assert join(processes, 60) == [75, 75]
    owner.release()
    assert "rank 0: error: output folder" in (tmp_path / "0.log").read_text()
    assert not (tmp_path / "1.log").read_text()
