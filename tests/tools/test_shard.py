"""Packing pictures into tar files, as a user does."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.shards import Shards
from tests.support.picture_files import jpeg, write_classes, write_tar
from tests.support.small_runs import call, snapshot
from tools import shard


def test_pictures_without_class_folders_have_no_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.a.png", "a.png", "b_a.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / name)
    assert call(monkeypatch, shard, tmp_path / "in", tmp_path / "a/out") == 0
    said = capsys.readouterr().out
    assert said == f"wrote 3 pictures (no labels) to 1 tar file(s) in {tmp_path}/a/out\n"
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
    assert call(monkeypatch, shard, "--index", tmp_path) == 0
    assert "wrote the index of 1 pictures in 1 tar file(s)" in capsys.readouterr().out
    assert len(Shards(str(tmp_path))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in"], "give SOURCE and OUTPUT, or --index FOLDER"),
        (["in", "out", "--index", "in"], "give SOURCE and OUTPUT, or --index FOLDER"),
        (["in", "there"], "there is there already; nothing was written"),
        (["nowhere", "out"], "nowhere is not a folder"),
        (["there", "out"], "there holds no picture, at any depth"),
        (["in", "in/n01/n01.0.JPEG/out"], "n01.0.JPEG: File exists"),
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
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, shard, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_sharding_that_is_stopped_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_classes(tmp_path / "in")
    add_sample = shard.add_sample

    def stop_at_the_fourth(tar: Any, index: int, path: str, label: int) -> None:
        if index == 3:
            raise KeyboardInterrupt
        add_sample(tar, index, path, label)

    monkeypatch.setattr(shard, "add_sample", stop_at_the_fourth)
    assert call(monkeypatch, shard, source, tmp_path / "out") == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
