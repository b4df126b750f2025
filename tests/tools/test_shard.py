"""Packing pictures into tar files, as a user does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from data.shards import Shards
from tests.support.picture_files import jpeg, write_classes, write_tar
from tests.support.small_runs import ROOT, call, snapshot
from tools import shard


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_pictures_without_class_folders_have_no_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.a.png", "a.png", "b_a.png"):
        draw(tmp_path / "in" / name)
    assert call(monkeypatch, shard, tmp_path / "in", tmp_path / "a/out") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"3 images in 1 folder(s) ({tmp_path}/in and below)")
    assert said.endswith(f"\nwrote 3 pictures (no labels) to 1 tar file(s) in {tmp_path}/a/out\n")
    found = Shards(str(tmp_path / "a/out"))
    assert [found[index][1] for index in range(3)] == [-1, -1, -1]
    assert sorted(path.name for path in (tmp_path / "a/out").iterdir()) == [
        "000000.tar",
        "000000.tar.index",
    ]


def test_the_same_pictures_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_classes(tmp_path / "in")
    contents = []
    for name in ("one", "two"):
        assert call(monkeypatch, shard, source, tmp_path / name) == 0
        files = snapshot(tmp_path / name)
        contents.append({Path(path).name: content for path, content in files.items()})
    assert contents[0] == contents[1]
    assert contents[0]["classes.txt"] == b"n01\nn02\n"


def test_an_index_is_written_for_tar_files_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "0.tar", {"x.jpg": jpeg()})
    Path(f"{path}.index").write_text("an old one")
    write_tar(tmp_path / "1.TAR", {"x.jpg": jpeg()})
    (tmp_path / "._0.tar").write_bytes(b"of a Mac")
    assert call(monkeypatch, shard, "--index", tmp_path) == 0
    assert "wrote the index of 2 pictures in 2 tar file(s)" in capsys.readouterr().out
    shards = Shards(str(tmp_path))
    assert len(shards) == 2
    assert "read the headers" not in shards.found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in"], "give SOURCE and OUTPUT, or --index FOLDER"),
        (["in", "out", "--index", "in"], "give SOURCE and OUTPUT, or --index FOLDER"),
        (["in", "there"], "there is there already; nothing was written"),
        (["nowhere", "out"], "nowhere is not a folder"),
        (["there", "out"], "there holds no picture, at any depth"),
        (["in", "in/n01/out"], "in/n01/out lies in in, whose pictures it is to hold"),
        (["in", "in"], "in is there already; nothing was written"),
        (["in", "file/out"], "file: File exists"),
        (["mixed", "out"], "mixed: 2 picture(s) such as cover.png lie beside its folders and"),
        (["years", "out"], "class folders without pictures: empty"),
        (["years", "out"], "(or give --no-labels)"),
        (["lines", "out"], "has a newline in its name, and classes.txt has one class in a line"),
        (["--index", "in", "--no-labels"], "give SOURCE and OUTPUT, or --index FOLDER"),
        (["--index", "in"], "in holds no .tar file"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    write_classes(tmp_path / "in")
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for name in ("mixed/cover.png", "mixed/x.png", "mixed/a/1.png", "mixed/b/1.png"):
        draw(tmp_path / name)
    for name in ("years/2021/1.png", "years/2022/1.png", "lines/a\nb/1.png", "lines/c/1.png"):
        draw(tmp_path / name)
    (tmp_path / "years/empty").mkdir()
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, shard, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_folders_that_are_no_classes_are_packed_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cover.png", "2021/a.png", "2022/b.png"):
        draw(tmp_path / "in" / name)
    (tmp_path / "in" / "empty").mkdir()
    assert call(monkeypatch, shard, tmp_path / "in", tmp_path / "out", "--no-labels") == 0
    found = Shards(str(tmp_path / "out"))
    assert [found.name(index)[-5:] for index in range(3)] == ["a.png", "b.png", "r.png"]
    assert set(found.labels.tolist()) == {-1}
    assert not (tmp_path / "out/classes.txt").exists()


def test_what_is_no_file_is_found_before_hours_of_packing(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths = [str(draw(tmp_path / "a.png"))] * 2
    shard.require_files(paths)
    paths += [str(tmp_path / name) for name in ("link.png", "pipe.png", "gone.png")]
    with pytest.raises(ValueError, match=r"3 of 5 pictures are no files .* is \S+/link\.png: rem"):
        shard.require_files(paths)


def test_pictures_that_become_unreadable_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [draw(tmp_path / "in" / f"{index:02}.png") for index in range(24)]
    samples = [(str(path), -1) for path in paths]
    for path in (paths[3], paths[-1]):
        path.unlink()
    for size, number in ((1, 22), (10**6, 1)):
        (folder := tmp_path / str(size)).mkdir()
        left_out: list[str] = []
        assert shard.write_shards(samples, folder, size, left_out) == number
        assert left_out == [
            f"{path} cannot be read as a picture: No such file or directory"
            for path in (paths[3], paths[-1])
        ]
        assert len(Shards(str(folder))) == 22
    for path in paths[:3]:
        path.unlink()
    with pytest.raises(ValueError, match=r"4 pictures cannot be read: .*03\.png cannot"):
        shard.write_shards(samples, folder, 10**6, [])


def test_what_a_killed_process_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".out-abcd_123" / "shards").mkdir(parents=True)
    (tmp_path / ".out-2-abcd_123" / "shards").mkdir(parents=True)
    source = write_classes(tmp_path / "in")
    assert call(monkeypatch, shard, source, tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert f"{tmp_path}/.out-abcd_123 was left by a process that was killed, unless" in said
    assert ".out-2-" not in said


def test_classes_of_any_name_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_classes(tmp_path / "in")
    os.rename(source / "n02", os.path.join(os.fsencode(source), b"caf\xe9\xe2\x80\xa8x"))
    assert call(monkeypatch, shard, source, tmp_path / "out") == 0
    assert (tmp_path / "out/classes.txt").read_bytes() == b"caf\xe9\xe2\x80\xa8x\nn01\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sharding_that_is_stopped_in_the_middle_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    source = tmp_path / "in"
    first = draw(source / "00000.png")
    for index in range(1, 10_000):
        os.link(first, source / f"{index:05}.png")
    command = [sys.executable, "-m", "tools.shard", str(source), str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out-*/shards/*.tar")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    status, line = {signal.SIGINT: (130, "interrupted")}.get(
        number, (75, f"stopped by {number.name}: what was packed is removed")
    )
    assert (process.returncode, said) == (status, f"{line}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
