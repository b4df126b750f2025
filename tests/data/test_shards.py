"""Pictures in tar files: the same samples as from a folder, and what is wrong is named."""

import io
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import (
    build_eval_dataset,
    build_pretrain_dataset,
    build_train_dataset,
    shards,
    tar_index,
)
from data.members import PLACE, Members
from data.pictures import NO_LABEL
from data.shards import Shards, classes_text, entries_of, write_index
from data.sources import ImageFolder
from data.tar_index import read_index
from tests.support.picture_files import jpeg, write_classes, write_tar
from tests.support.small_runs import call, checkpoint_of, equal, run_here, write_config
from tools import shard
from utils.config import get_config


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds `pictures` and, of the same pictures, `shards`; train and val."""
    monkeypatch.setattr(shard, "_MIB", 4000)  # bytes, so that there are several tar files
    for part in ("train", "val"):
        source = write_classes(tmp_path / "pictures" / part)
        assert call(monkeypatch, shard, source, tmp_path / "shards" / part, "--size", 1) == 0
    assert len(list((tmp_path / "shards/train").glob("*.tar"))) > 2
    return tmp_path


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_give_the_samples_of_the_folder(packed: Path, indexed: bool) -> None:
    if not indexed:
        for path in (packed / "shards/train").glob("*.index"):
            path.unlink()
    folder, tars = (
        build_pretrain_dataset(
            get_config(None, ["DATA.DATASET", name, "DATA.DATA_PATH", str(packed / part)]),
            patch_size=4,
        )
        for name, part in (("imagenet", "pictures/train"), ("shards", "shards/train"))
    )
    assert len(folder) == len(tars) == 6
    for epoch in range(2):
        for index in range(6):
            for one, other in zip(folder[epoch, index], tars[epoch, index], strict=True):
                assert torch.equal(one, other)


@pytest.mark.slow
def test_a_run_on_shards_equals_the_run_on_the_folder_also_when_it_is_resumed(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = write_config(packed)
    epochs = {"folder": [2], "shards": [1, 2]}
    for tag, name, part in (
        ("folder", "imagenet", "pictures/train"),
        ("shards", "shards", "shards/train"),
    ):
        for number in epochs[tag]:  # the second starts from the first one's checkpoint
            arguments = ["--output", packed, "--tag", tag, "--data-path", packed / part]
            arguments += ["--batch-size", 2, "--opts", "DATA.DATASET", name, "TRAIN.EPOCHS", number]
            arguments += ["DATA.NUM_WORKERS", 2, "TRAIN.WARMUP_EPOCHS", 0]
            arguments += ["TRAIN.LR_SCHEDULER.NAME", "step"]
            assert run_here(monkeypatch, cfg, *arguments) == 0
    one, other = (checkpoint_of(packed, 1, tag) for tag in epochs)
    assert equal(one["model"], other["model"])
    assert equal(one["optimizer"], other["optimizer"])


def test_class_folders_become_labels(packed: Path) -> None:
    opts = ["AUG.AUTO_AUGMENT", "none", "DATA.IMG_SIZE", 32]
    found = []
    for name, part in (("imagenet", "pictures"), ("shards", "shards")):
        path = str(packed / part)
        cfg = get_config(None, [*opts, "DATA.DATASET", name, "DATA.DATA_PATH", path])
        train = build_train_dataset(cfg)
        val = build_eval_dataset(cfg, train.classes)
        assert train.classes == val.classes == ["n01", "n02"]
        found.append([*(train[1, index] for index in range(6)), *(val[0, i] for i in range(6))])
    for (image, label), (same_image, same_label) in zip(*found, strict=True):
        assert torch.equal(image, same_image)
        assert label == same_label


def test_tar_files_of_other_programs_are_read(tmp_path: Path) -> None:
    members = {
        "a/x.jpg": jpeg(),
        "a/x.cls": b"1\n",
        "a/x.json": b"{}",
        "a/y.seg.png": b"",
        "b/x.JPG": jpeg(16),
        "b/x.cls": b"0",
    }
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", {"z.cls": b"2", "z.jpg": jpeg()})
    found = Shards(str(tmp_path))
    assert [int(label) for label in found.labels] == [1, -1, 0, 2]
    pictures: list[Any] = [found[index][0] for index in (0, 2, 3)]
    assert [tuple(picture.shape[1:]) for picture in pictures] == [(8, 8), (16, 16), (8, 8)]
    with pytest.raises(ValueError, match=r"0\.tar: a/y\.seg\.png cannot be read.*it is empty"):
        found[1]
    with pytest.raises(ValueError, match=r"picture a/y\.seg\.png has no label"):
        _ = found.classes


def test_arrays_in_tar_files_are_read(tmp_path: Path) -> None:
    np.save(array := io.BytesIO(), np.full((8, 8, 3), 255, np.uint8))
    write_tar(tmp_path / "0.tar", {"z.cls": b"2", "z.npy": array.getvalue()})
    picture, label = Shards(str(tmp_path))[0]
    assert label == 2
    assert np.asarray(picture).shape == (3, 8, 8)
    assert (np.asarray(picture) == 1).all()


def test_classes_without_names_are_named_by_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"2"})
    assert Shards(str(tmp_path)).classes == ["0", "1", "2"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"classes\.txt names 2 classes, but a label is 2"):
        _ = Shards(str(tmp_path)).classes
    (tmp_path / "classes.txt").write_text("crane\nmaillot\ncrane\n")
    with pytest.raises(ValueError, match=r"classes\.txt, lines 1 and 3: two classes 'crane': give"):
        _ = Shards(str(tmp_path)).classes


def test_a_label_beyond_the_largest_number_of_classes_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"2147483647"})
    with pytest.raises(ValueError, match="a label is 2147483647, beyond 10000000 classes"):
        _ = Shards(str(tmp_path)).classes


def test_few_files_are_open_at_a_time_and_none_moves_to_another_process(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    found = Shards(str(packed / "shards/train"))
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for index in [*range(6), *range(6)]:
        assert found[index][1] == index // 3
    if before:
        assert len(os.listdir("/proc/self/fd")) == before + 2
    copy = pickle.loads(pickle.dumps(found))
    assert not copy.files
    assert copy[5][1] == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", r"holds no \.tar file"),
        ("empty", r"0\.tar holds no picture"),
        ("words", r"0\.tar cannot be read as an uncompressed tar file"),
        ("compressed", r"0\.tar cannot be read as an uncompressed tar file"),
        ("cut off", r"0\.tar cannot be read as an uncompressed tar file: unexpected end of data"),
        ("label", r"x\.cls holds b'cat', expected the index of a class"),
        ("huge label", r"x\.cls holds b'99999999999', expected the index of a class"),
        ("too large", r"0\.tar holds a picture of more than 2 GiB"),
    ],
)
def test_wrong_shards_are_named(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "0.tar"
    members = {"x.jpg": jpeg()}
    if kind in ("label", "huge label"):
        members["x.cls"] = b"cat" if kind == "label" else b"99999999999"
    if kind != "none":
        write_tar(path, {} if kind == "empty" else members, "w:gz" if kind == "compressed" else "w")
    if kind == "words":
        path.write_text("nothing")
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "too large":
        os.truncate(write_tar(path, {}), 2**31 + 2**20)  # no bytes are written
        header = tarfile.TarInfo("x.jpg")
        header.size = 2**31 + 512
        with open(path, "r+b") as file:
            file.write(header.tobuf())
    with pytest.raises(ValueError, match=message) as error:
        Shards(str(tmp_path))
    assert "\n" not in str(error.value)


def content_of(members: Members) -> tuple[Any, ...]:
    left = members.left_out
    return members.places.tolist(), list(members.names), left.counts, left.examples


INDEX_KINDS = [
    *("other tar", "old version", "archive", "words", "empty", "cut", "bit", "pipe", "folder"),
    *("other rules", "beyond"),
]


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_an_index_that_is_not_believed_costs_time_and_nothing_else(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"x.jpg": jpeg(), "x.cls": b"4", "y.gif": b""}
    path = write_tar(tmp_path / "0.tar", members)
    expected = content_of(entries_of(str(path)))
    index = Path(f"{path}.index")
    write_index(str(path), entries_of(str(path)))
    content = bytearray(index.read_bytes())
    if kind == "other tar":
        write_tar(path, {f"{i}.jpg": jpeg() for i in range(30)})
        write_index(str(path), entries_of(str(path)))
        write_tar(path, members)
    elif kind in ("old version", "archive"):
        with open(index, "wb") as file:
            (np.save if kind == "old version" else np.savez)(file, np.zeros(3))
    elif kind in ("words", "empty"):
        index.write_text("nothing" if kind == "words" else "")
    elif kind == "cut":
        index.write_bytes(content[:-1])
    elif kind == "bit":
        content[content.index(b"\n", content.index(b"\n") + 1) + 1 + 16] ^= 1  # of the first label
        index.write_bytes(content)
    elif kind in ("pipe", "folder"):
        index.unlink()
        (os.mkfifo if kind == "pipe" else os.mkdir)(index)
    elif kind == "other rules":
        monkeypatch.setattr(tar_index, "_RULES", "of another version")
    elif kind == "beyond":
        own = entries_of(str(path))
        places = np.array([(512, 10**6, 4)], dtype=PLACE)
        write_index(str(path), Members(places, own.names, own.ranges))
    assert content_of(entries_of(str(path))) == expected
    said = Shards(str(tmp_path)).found
    assert "left out: 1 .gif" in said
    assert "; read the headers of 1 tar file(s) (0.tar: " in said
    assert said.endswith(f"); python -m tools.shard --index {tmp_path} saves that")


@pytest.mark.parametrize(("times", "number"), [("new", 2), ("equal", 2), ("new", 60)])
def test_an_index_of_an_earlier_tar_file_of_the_same_size_is_not_believed(
    tmp_path: Path, times: str, number: int
) -> None:
    """Two labels changed places; of 60 pictures not all are compared where the times are equal."""
    path, labels = tmp_path / "0.tar", [index % 9 for index in range(number)]
    changed = labels.copy()
    one, other = (29, 58) if number == 60 else (0, 1)
    changed[one], changed[other] = labels[other], labels[one]
    for numbers in (labels, changed):
        members: dict[str, bytes] = {}
        for index, label in enumerate(numbers):
            members |= {f"{index}.jpg": jpeg(), f"{index}.cls": b"%d" % label}
        write_tar(path, members)
        if times == "equal":
            os.utime(path, (7, 7))
        if numbers is labels:
            write_index(str(path), entries_of(str(path)))
    found = Shards(str(tmp_path))
    assert found.labels.tolist() == changed != labels
    assert "(0.tar: its index is of another tar file)" in found.found


@pytest.mark.parametrize("preserved", [True, False])
def test_an_index_is_believed_after_the_files_were_copied(packed: Path, preserved: bool) -> None:
    source, target = packed / "shards/train", packed / "copy"
    shutil.copytree(source, target, copy_function=shutil.copy2 if preserved else shutil.copyfile)
    if not preserved:
        for number, path in enumerate(sorted(target.iterdir())):
            os.utime(path, (number, number))
    for path in target.glob("*.tar"):  # headers that are not compared need not be read
        read_index(str(path))
    assert "headers" not in Shards(str(target)).found
    assert Shards(str(target)).digest == Shards(str(source)).digest


def test_an_index_gives_the_entries_of_the_headers(packed: Path) -> None:
    for path in (packed / "shards/train").glob("*.tar"):
        indexed = content_of(read_index(str(path)))
        Path(f"{path}.index").unlink()
        assert content_of(entries_of(str(path))) == indexed


def sources_of(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg())
    return root


def names_in(folder: Path) -> list[str]:
    return [os.fsdecode(name) for name in Shards(str(folder)).names]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_tar_file_of_a_folder_holds_the_pictures_of_the_folder(
    tmp_path: Path, kind: Any
) -> None:
    """Names with several dots, links, upper case and long names are pictures in both."""
    names = [f"S2A.2020{month:02}01.T32.png" for month in range(1, 11)]
    names += ["b/x.JPG", "b/._x.JPG", ".hidden/c.jpg", "d.jpg/e.png", "f.gif", "__MACOSX/._a.jpg"]
    names += ["caf\udce9/x.png", "n" * 90 + "/" + "m" * 60 + ".png", "blob"]
    source = sources_of(tmp_path / "in", names)
    os.link(source / "b/x.JPG", source / "b/y.jpg")
    (source / "link.jpg").symlink_to("b/x.JPG")
    (source / "to_blob.png").symlink_to("blob")
    (source / "to_link.jpg").symlink_to("link.jpg")
    (source / "gone.jpg").symlink_to("nothing.jpg")
    (source / "turning.jpg").symlink_to("turning.jpg")
    os.mkfifo(source / "pipe.jpg")
    (tmp_path / "out").mkdir()
    with tarfile.open(tmp_path / "out/0.tar", "w", format=kind) as tar:
        tar.add(source, arcname=".")
    folder, tars = ImageFolder(str(source)), Shards(str(tmp_path / "out"))
    assert sorted(tars.names) == list(folder.names)
    assert len(folder) == 18
    assert [tars[index][1] for index in range(18)] == [NO_LABEL] * 18  # each can be read
    left = [words.partition("left out: ")[2] for words in (folder.found, tars.found)]
    left[1] = left[1].partition("; read")[0].replace("0.tar: ", "")
    assert left[0] == left[1]
    assert left[0] == (
        "2 hidden folders (.hidden), 2 links to nothing (gone.jpg), 1 .gif, 1 hidden (b/._x.JPG), "
        "1 pipe or device (pipe.jpg), 1 without suffix (blob)"
    )


def test_of_samples_of_several_pictures_the_plain_one_is_read(tmp_path: Path) -> None:
    names = ["0.jpg", "0.seg.png", "0.depth.png", "1.seg.png", "1.jpg", "2.left.png"]
    names += ["2.right.png", "d.x/0.seg.png"]
    labels = {"0.cls": b"4", "1.cls": b"5", "1.coarse.cls": b"9", "2.cls": b"6", "9.cls": b"1"}
    write_tar(tmp_path / "0.tar", {name: jpeg() for name in names} | labels)
    found = Shards(str(tmp_path))
    assert list(found.names) == [
        *(b"0.jpg", b"1.jpg", b"2.left.png", b"2.right.png", b"d.x/0.seg.png")
    ]
    assert found.labels.tolist() == [4, 5, 6, 6, -1]
    assert "left out: 2 .cls without a picture, 2 .seg.png, 1 .depth.png; " in found.found


def test_names_with_several_dots_have_labels_of_their_own(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number in range(3):
        members |= {f"S2A.{number}.cls": b"%d" % number, f"S2A.{number}.png": jpeg()}
    write_tar(tmp_path / "0.tar", members)
    assert Shards(str(tmp_path)).labels.tolist() == [0, 1, 2]


def test_a_member_that_was_added_again_counts_once_and_is_the_last_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"1", "y.jpg": jpeg()})
    write_tar(path, {"./x.jpg": jpeg(16), "x.cls": b"2"}, "a")
    found = Shards(str(tmp_path))
    assert (names_in(tmp_path), found.labels.tolist()) == (["x.jpg", "y.jpg"], [2, -1])
    picture: Any = found[0][0]
    assert tuple(picture.shape[1:]) == (16, 16)
    assert "left out: 2 replaced by a later member of the same name (0.tar: x.cls)" in found.found


def test_members_that_are_no_whole_files_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "sparse.png"
    with open(source, "wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"x")
    subprocess.run(["tar", "cSf", tmp_path / "0.tar", "sparse.png"], cwd=tmp_path, check=True)
    source.unlink()
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        for name, kind in (("pipe.jpg", tarfile.FIFOTYPE), ("odd.jpg", b"Z"), ("d.jpg", b"5")):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
        member = tarfile.TarInfo("x.jpg")
        member.type, member.linkname = tarfile.LNKTYPE, "nothing.jpg"
        tar.addfile(member)
        member = tarfile.TarInfo("good.jpg")
        member.size = len(jpeg())
        tar.addfile(member, io.BytesIO(jpeg()))
    found = Shards(str(tmp_path))
    assert list(found.names) == [b"good.jpg"]
    assert "left out: 2 pipes or devices (0.tar: odd.jpg), 1 link to nothing (0.tar: x.jpg), " in (
        found.found
    )
    assert "1 sparse file (0.tar: sparse.png)" in found.found


def test_other_files_beside_tar_files_are_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg()})
    write_tar(tmp_path / "1.TAR", {"y.jpg": jpeg()})
    (tmp_path / "deep").mkdir()
    for name in ("._0.tar", "2.tar.gz", "3.tgz", "loose.jpg", "classes.txt", "0.tar.index"):
        (tmp_path / name).write_bytes(b"")
    write_index(str(tmp_path / "0.tar"), entries_of(str(tmp_path / "0.tar")))
    write_index(str(tmp_path / "1.TAR"), entries_of(str(tmp_path / "1.TAR")))
    left_out = Shards(str(tmp_path)).found.partition("; left out: ")[2]
    assert left_out == (
        "1 .gz, 1 .tgz, 1 folder beside the tar files (deep), 1 hidden (._0.tar), "
        "1 picture beside the tar files (loose.jpg)"
    )


def member_of(
    name: str, content: bytes = b"", size: int | None = None, kind: bytes = b"0"
) -> bytes:
    """The blocks of a member, whose header may claim another size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content) if size is None else size, kind
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


GOOD, END = member_of("x.jpg", jpeg()), bytes(1024)
HIDING = {
    "negative": (member_of("x.jpg", size=-512), r"x\.jpg has -512 bytes"),
    "negative later": (GOOD + member_of("y.jpg", size=-1024), r"y\.jpg has -1024 bytes"),
    "long header": (member_of("x", size=2**33, kind=b"L") + GOOD, "a header of 8589934592 bytes"),
    "nested headers": (
        member_of("x", kind=b"L") * 3000 + GOOD,
        "cannot be read as an uncompressed",
    ),
    "damaged": (
        GOOD + b"\1" * 512 + GOOD,
        r"0\.tar is damaged: at byte \d+ neither a file's header",
    ),
    "joined": (GOOD + END + GOOD + END, r"0\.tar goes on after its end, at byte \d+: of tar files"),
    "large label": (member_of("x.cls", b"1" * 21), r"x\.cls holds b'1{21}', expected the index of"),
    "more labels": (GOOD + member_of("x.gif") + member_of("x.cls", b"-1"), r"x\.cls holds b'-1'"),
    "no picture": (member_of("x.gif") + END, r"0\.tar holds no picture; left out: 1 \.gif"),
}


@pytest.mark.parametrize("kind", HIDING)
def test_a_tar_file_that_hides_pictures_is_refused(tmp_path: Path, kind: str) -> None:
    content, message = HIDING[kind]
    (tmp_path / "0.tar").write_bytes(content + END)
    with pytest.raises(ValueError, match=message) as error:
        Shards(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "0.tar")
    with pytest.raises(ValueError, match=r"0\.tar cannot be read .* it is no regular file"):
        Shards(str(tmp_path))
    os.rename(tmp_path / "0.tar", tmp_path / "classes.txt")
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"0"})
    with pytest.raises(ValueError, match=r"classes\.txt cannot be read: it is no regular file"):
        _ = Shards(str(tmp_path)).classes


def test_a_tar_file_without_an_end_is_mentioned(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(GOOD)
    for _ in range(2):
        said = Shards(str(tmp_path)).found
        assert said.endswith("1 tar file(s) have no end mark and may be cut off (0.tar)")
        write_index(str(tmp_path / "0.tar"), entries_of(str(tmp_path / "0.tar")))


def test_an_index_with_labels_that_are_none_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_tar(path, {"x.jpg": jpeg(), "x.cls": b"5"})
    members = entries_of(str(path))
    members.places["label"] = -7
    write_index(str(path), members)
    shards = Shards(str(tmp_path))
    assert shards.labels.tolist() == [5]
    assert "its index is damaged or of another version" in shards.found


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_only_newlines_divide_the_names_of_classes(tmp_path: Path, end: str) -> None:
    names = ["a\u2028x", "b\x85", "c\x0cd", "e\rf", "caf\udce9", " g "]
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"5"})
    content = classes_text(names)
    if end != "\n":
        content = content.replace(b"\n", end.encode() or b"\n")
    (tmp_path / "classes.txt").write_bytes(content if end else b"\xef\xbb\xbf" + content[:-1])
    assert Shards(str(tmp_path)).classes == names
    with pytest.raises(ValueError, match=r"class 'a\\nb' has a newline in its name"):
        classes_text(["a", "a\nb"])
    with pytest.raises(ValueError, match=r"class 'a\\r' has a newline"):
        classes_text(["a\r"])


def test_an_empty_line_is_no_name_of_a_class(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"x.jpg": jpeg(), "x.cls": b"2"})
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    with pytest.raises(ValueError, match=r"classes\.txt, line 2 is empty, expected the name"):
        _ = Shards(str(tmp_path)).classes


def test_more_names_of_classes_than_labels_are_refused_where_they_are_learned(
    tmp_path: Path,
) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        members = {"x.jpg": jpeg(), "x.cls": b"0", "y.jpg": jpeg(), "y.cls": b"1"}
        write_tar(tmp_path / part / "0.tar", members)
        (tmp_path / part / "classes.txt").write_text("a\nb\nc\n")
    cfg = get_config(None, ["DATA.DATASET", "shards", "DATA.DATA_PATH", str(tmp_path)])
    with pytest.raises(ValueError, match=r"names 3 classes, but the largest label is 1: do names"):
        build_train_dataset(cfg)
    assert len(build_eval_dataset(cfg, ["a", "b", "c"])) == 2
