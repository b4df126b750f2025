"""Consoles, figures and files that cannot be written: what a run does then, with real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from logger import RunLog
from tests.support.log_records import record
from tests.support.long_runs import has_trained, program, said, wait_for
from tests.support.small_runs import ROOT, metrics_of, run_folder, write_config


@pytest.mark.slow
@pytest.mark.parametrize("console", [">&- 2>&- <&-", ">/dev/full 2>&1", "| head -n 3"])
def test_a_console_that_fails_does_not_end_a_run(tmp_path: Path, console: str) -> None:
    command = f"{sys.executable} main_simmim.py --cfg {write_config(tmp_path)} --output {tmp_path}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {console}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(metrics_of(tmp_path)) == 16
    assert "EPOCH 1 training takes" in (run_folder(tmp_path) / "log_rank0.txt").read_text()


@pytest.mark.slow
def test_a_pipe_that_is_full_and_does_not_wait_does_not_end_a_run(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    cfg = str(write_config(tmp_path))
    command = [sys.executable, "main_simmim.py", "--cfg", cfg, "--output", str(tmp_path)]
    with open(os.devnull) as nothing, open(tmp_path / "errors", "w+") as errors:
        try:
            while True:
                os.write(writer, b"x" * 4096)
        except BlockingIOError:
            pass
        process = subprocess.Popen(command, cwd=ROOT, stdin=nothing, stdout=writer, stderr=errors)
        assert process.wait(120) == 0
        assert errors.read() == ""
    os.close(reader)
    os.close(writer)
    assert len(metrics_of(tmp_path)) == 16


@pytest.mark.slow
def test_a_folder_that_goes_away_ends_the_run_in_one_line_when_a_checkpoint_is_due(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    opts = ("DATA.NUM_SHAPES", "400", "PICTURE_FREQ", "1")
    with program(tmp_path, output, *opts) as process:
        wait_for(lambda: has_trained(output))
        run_folder(output).rename(tmp_path / "away")
        assert process.wait(60) == 2
    assert "Traceback" not in said(output)
    missing = "cannot be written: No such file or directory"
    assert said(output).count(f"metrics.jsonl {missing}; training goes on") == 1
    gone = "cannot be written: its folder is gone, removed or renamed"
    assert said(output).endswith(f"error: {run_folder(output)}/ckpt_epoch_0.pth {gone}\n")


def test_figures_that_cannot_be_written_are_written_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, rank=0, first_update=0, first_epoch=0, epochs=2)
    log.report(record(0))
    path, kept = tmp_path / "metrics.jsonl", tmp_path / "kept"
    path.rename(kept)
    path.mkdir()
    log.report(record(1))
    log.report(record(2))
    path.rmdir()
    kept.rename(path)
    log.report(record(3))
    log.close()
    assert [line.count('"update"') for line in path.read_text().splitlines()] == [1] * 4
    assert capsys.readouterr().out.count("cannot be written: Is a directory; training goes on") == 1
