"""The self-test of a machine: alone, under torchrun, and where something is wrong."""

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.picture_files import write_classes
from tests.support.small_runs import ROOT, call, under_torchrun, write_config
from tools import selftest
from tools.measuring import host
from utils.config import get_config

VERDICTS = ("ok", "slow", "wrong")


def verdicts(said: str) -> dict[str, str]:
    """Row -> verdict, of all rows that were printed."""
    rows = [line for line in said.splitlines() if line.startswith(tuple(f"{v} " for v in VERDICTS))]
    names = {name: row for name in selftest.ROWS for row in rows if row[7:].startswith(name)}
    return {name: row.split()[0] for name, row in names.items()}


@pytest.mark.slow
def test_a_machine_is_tested_alone_with_its_own_pictures_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "pictures", number=8)
    arguments = ["--data-path", tmp_path / "pictures", "--output", tmp_path / "new/output"]
    assert call(monkeypatch, selftest, "--cfg", write_config(tmp_path), *arguments) == 0
    said = capfd.readouterr().out
    assert list(verdicts(said)) == list(selftest.ROWS)
    assert set(verdicts(said).values()) <= {"ok", "slow"}
    assert f"({tmp_path / 'pictures'}); updates need" in said
    assert said.splitlines()[-1].startswith("wrong: nothing; slow: ")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".selftest*"))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_processes_are_tested_together(tmp_path: Path, sharding: str) -> None:
    arguments = ["--output", tmp_path, "--opts", "TRAIN.SHARDING", sharding]
    cfg = write_config(tmp_path)
    done = under_torchrun(2, cfg, *arguments, program="-m tools.selftest")
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(verdicts(done.stdout)) == list(selftest.ROWS)
    assert done.stdout.count("wrong: nothing") == 1, "one process prints"
    assert "; gloo; gloo's interface: " in done.stdout
    assert "GB/s of each process" in done.stdout


@pytest.mark.slow
def test_what_is_wrong_is_a_row_and_the_rest_is_tested_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = ["--output", tmp_path / "file/output", "--opts", "TRAIN.SHARDING", "full"]
    arguments += ["DATA.NUM_WORKERS", 1000]
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(allowed, 4096), most))
    try:
        assert call(monkeypatch, selftest, "--cfg", write_config(tmp_path), *arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    said = capfd.readouterr().out
    wrong = [name for name, verdict in verdicts(said).items() if verdict == "wrong"]
    assert wrong == ["an update", "disk", "open files"]
    assert "rank 0: TRAIN.SHARDING is full, which needs a launcher" in said
    assert f"{tmp_path / 'file'}" in said
    assert "Not a directory" in said
    assert "wrong: an update, disk, open files; slow" in said


@pytest.mark.slow
def test_a_wrong_row_ends_all_processes_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["--output", tmp_path / "file"]
    cfg = write_config(tmp_path)
    done = under_torchrun(2, cfg, *arguments, program="-m tools.selftest")
    assert done.returncode == 1
    assert verdicts(done.stdout)["disk"] == "wrong"
    assert done.stderr.count("exitcode  : 1") == 2
    assert "rank 0: disk: " in done.stderr, "it is told before the others are waited for"


@pytest.mark.slow
def test_little_shared_memory_is_wrong(tmp_path: Path) -> None:
    """A file system of its own for /dev/shm needs root, and a kernel that grants it."""
    mounted = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    isolated = ["unshare", "--mount", "sh", "-c"]
    if os.getuid() or subprocess.run([*isolated, mounted], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    words = f"{mounted} && exec {sys.executable} -m tools.selftest --cfg {write_config(tmp_path)}"
    words += f" --output {tmp_path} --opts DATA.NUM_WORKERS 2"
    done = subprocess.run([*isolated, words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "wrong  shm, MB         0, of which 2 worker(s) of each process need 0" in done.stdout
    assert "wrong: shm, MB; slow: " in done.stdout


def test_wrong_usage_ends_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, selftest, "--cfg", tmp_path / "none.yaml") == 2
    assert call(monkeypatch, selftest, "--outputs", tmp_path) == 2
    assert "did you mean --output?" in capfd.readouterr().err


def test_a_disk_is_wrong_where_its_bytes_change_and_too_small_for_the_checkpoints(
    tmp_path: Path,
) -> None:
    with host.written_file(tmp_path, 3 * 2**24 + 5) as (path, seconds):
        assert path.stat().st_size == 3 * 2**24 + 5
        assert seconds > 0
        assert host.seconds_to_read(path) > 0
        with open(path, "r+b") as file:
            file.seek(2**25)
            byte = file.read(1)
            file.seek(2**25)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(ValueError, match="holds other bytes than were written"):
            host.seconds_to_read(path)
    assert not path.exists()


def test_verdicts_follow_from_the_worst_process(tmp_path: Path) -> None:
    test = selftest.prepare(get_config(str(write_config(tmp_path)), ["TRAIN.EPOCHS", 9]))
    size = selftest.checkpoint_size(test)
    assert size == 12 * test.parameters
    assert selftest.judge_room(test, [11 * size])[0] == "ok"
    assert selftest.judge_room(test, [9 * size])[0] == "wrong"
    assert selftest.judge_disk(test, [(1, 1, True), (0, 0, True)])[0] == "ok"
    assert selftest.judge_disk(test, [(100, 1, True), (0, 0, True)])[0] == "slow"
    assert selftest.judge_disk(test, [(1, 1, True), (0, 0, False)])[0] == "wrong"
    assert selftest.judge_devices(test, ["a", "a"]) == ("ok", "2 x a")
    assert selftest.judge_devices(test, ["a", "b"]) == ("slow", "1 x a; 1 x b")
    assert selftest.judge_products(test, [1e12, 0.7e12])[0] == "slow"
    assert test.peak == 0.7e12
    assert selftest.judge_limit(test, [(9, 5), (4, 5)])[0] == "wrong"
    assert math.isnan(test.update_seconds)
    assert selftest.judge_loading(test, [5.0, None])[0] == "ok"
    test.update_seconds = 1.0  # of 4 images
    assert selftest.judge_loading(test, [5.0, 3.0])[0] == "slow"
    assert selftest.judge_loading(test, [5.0, 4.5])[0] == "ok"
