"""The scan for unreadable pictures: what it reads, and what keeps it from reading."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from data.pictures import Decoder
from data.shards import Shards
from data.sources import ImageFolder
from tests.support.picture_files import jpeg, write_tar
from tests.support.small_runs import ROOT, call
from tools import scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them broken."""
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data/a.png")
    (tmp_path / "data/b.png").write_bytes(b"broken")
    return tmp_path / "data"


def test_tar_files_beside_pictures_have_to_be_chosen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(folder / "n01440764.tar", {"x.jpg": jpeg()})
    assert call(monkeypatch, scan, folder) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder} holds 2 pictures and 1 tar file(s): give --dataset ")
    assert said.count("\n") == 1
    assert call(monkeypatch, scan, folder, "--workers", 1, "--dataset", "imagenet") == 1
    said = capsys.readouterr().out
    assert said.startswith(f"2 images in 1 folder(s) ({folder} and below) found in ")
    assert said.endswith("1 cannot be read\n")
    assert call(monkeypatch, scan, folder, "--workers", 1, "--dataset", "shards") == 0
    assert "\n1 pictures in " in f"\n{capsys.readouterr().out}"


def test_a_hidden_file_is_no_tar_file_and_an_upper_case_one_is(folder: Path) -> None:
    (folder / "._a.tar").write_bytes(b"of a Mac")
    assert isinstance(scan.pictures_of(str(folder), None, Decoder()), ImageFolder)
    (folder / "tars").mkdir()
    write_tar(folder / "tars/A.TAR", {"x.jpg": jpeg()})
    assert isinstance(scan.pictures_of(str(folder / "tars"), None, Decoder()), Shards)


def test_the_pictures_of_a_list_are_scanned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.csv").write_text("path,label\nb.png,x\n./b.png,x\n")
    assert call(monkeypatch, scan, folder / "train.csv", "--workers", 1) == 1
    said = capsys.readouterr().out
    assert "1 row(s) repeat the path of an earlier one" in said
    assert said.endswith(" 2 cannot be read\n")


@pytest.mark.parametrize(
    ("name", "reason"), [("none/list", "there is no folder"), (".", "it is a folder")]
)
def test_a_list_that_cannot_be_written_is_refused_before_the_scan(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    reason: str,
) -> None:
    assert call(monkeypatch, scan, folder, "--list", folder / name) == 2
    captured = capsys.readouterr()
    assert f"--list {folder / name} cannot be written: {reason}" in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_names_that_are_no_utf8_are_listed_as_bytes_and_printed_as_escapes(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = os.path.join(os.fsencode(folder), b"caf\xe9.jpg")
    Path(os.fsdecode(path)).write_bytes(b"broken")
    assert call(monkeypatch, scan, folder, "--workers", 1, "--list", tmp_path / "list") == 1
    assert f"{folder}/caf\\udce9.jpg cannot be read as a picture" in capsys.readouterr().out
    assert (tmp_path / "list").read_bytes().splitlines()[1] == path


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_scan(folder: Path) -> None:
    for index in range(3000):
        os.link(folder / "a.png", folder / f"{index}.png")
    command = [sys.executable, "-m", "tools.scan", str(folder), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        time.sleep(0.01)
    os.kill(int(workers[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said.startswith("error: a worker of the scan was killed, perhaps because memory was")
    assert said.count("\n") == 1
