"""The command line's ends."""

import pytest

from utils.program import run_program


@pytest.mark.parametrize(
    ("resumes", "message"),
    [
        (True, "interrupted; training goes on from its newest checkpoint with the same command\n"),
        (False, "interrupted\n"),
    ],
)
def test_ctrl_c_ends_with_status_130_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], resumes: bool, message: str
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        run_program(interrupted, resumes)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == message


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
