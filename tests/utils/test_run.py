"""Device and precision choices, and the command line's ends."""

import pytest
import torch

from utils.run import choose_device, choose_precision, run_program

CPU = torch.device("cpu")


def test_auto_is_a_gpu_if_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_precision_on_cpus_is_bfloat16_where_it_is_fast() -> None:
    assert choose_precision("auto", CPU) in (torch.bfloat16, torch.float32)
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    assert choose_precision("float32", CPU) == torch.float32
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        choose_precision("float16", CPU)


def test_ctrl_c_ends_with_status_130_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        run_program(interrupted)
    assert exit_.value.code == 130
    assert "goes on from its newest checkpoint with the same command" in capsys.readouterr().err


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
