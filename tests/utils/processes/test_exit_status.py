"""The command line's ends."""

from pathlib import Path

import pytest

from utils.processes.exit_status import run_program


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
