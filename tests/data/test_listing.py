"""Which pictures lie below a folder: their order, links in all directions, what stops a search."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data import listing
from data.labelled import class_folders
from data.listing import Names, find_pictures
from data.sources import ImageFolder
from tests.support.picture_files import jpeg

# Sorted as they are to be found: whole paths, byte by byte, so that "a-b" comes before "a/".
ORDER = [
    b"0/\n.jpg",
    b"10/10.jpg",
    b"9/9.jpg",
    b"A/z.PNG",
    b"a b/s.jpg",
    b"a-b/y.jpg",
    b"a.b/1.jpg",
    b"a/b-0/x.jpg",
    b"a/b.jpg",
    b"a/b/c.jpg",
    b"a/b0/d/e/f.jpeg",
    b"a/caf\xc3\xa9.jpg",
    b"a/caf\xe9.jpg",
    b"a/folder.jpg/in.jpg",
    b"a/x.jpg",
    b"caf\xc3\xa9/q.jpg",
    b"caf\xe9/p.jpg",
    b"top.jpg",
    "\ue000/1.jpg".encode(),
    "\U0001f600/1.jpg".encode(),
    b"\xff/1.jpg",
]
# Sorted as text, in which a byte that is not UTF-8 comes before U+E000.
CLASSES = [
    b"0", b"10", b"9", b"A", b"a", b"a b", b"a-b", b"a.b", b"caf\xc3\xa9", b"caf\xe9", b"\xff",
    "\ue000".encode(), "\U0001f600".encode(),
]  # fmt: skip


def make_files(root: Path, *names: bytes | str) -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    return root


def found(root: Path) -> list[str]:
    return [os.fsdecode(name) for name in find_pictures(str(root)).names]


def test_pictures_keep_the_order_of_earlier_runs(tmp_path: Path) -> None:
    make_files(tmp_path, *reversed(ORDER), b"a/notes.txt", b"a/none", b"a/.hidden.jpg")
    pictures = ImageFolder(str(tmp_path))
    assert list(pictures.names) == ORDER
    assert [pictures.path(index) for index in range(len(pictures))] == [
        os.path.join(tmp_path, os.fsdecode(name)) for name in ORDER
    ]


def test_classes_keep_their_order_and_pictures_theirs_inside_a_class(tmp_path: Path) -> None:
    make_files(tmp_path, *ORDER)
    pictures = class_folders(str(tmp_path))
    assert pictures.classes == [os.fsdecode(name) for name in CLASSES]
    expected = [
        (name, label)
        for label, folder in enumerate(CLASSES)
        for name in ORDER
        if name.startswith(folder + b"/")
    ]
    assert list(zip(pictures.names, pictures.labels.tolist(), strict=True)) == expected
    assert len(expected) == len(ORDER) - 1  # top.jpg has no class


def test_links_that_lead_back_do_not_make_the_listing_endless(tmp_path: Path) -> None:
    root = make_files(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    make_files(tmp_path, "other/3.jpg")
    (root / "a/parent").symlink_to("..")
    (root / "a/above").symlink_to(tmp_path)
    (root / "itself").symlink_to("itself")
    (root / "here").symlink_to(".")
    (root / "b/to_a").symlink_to("../a")
    (root / "a/to_b").symlink_to("../b")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert found(root) == ["a/1.jpg", "a/above/other/3.jpg", "b/2.jpg"]


def test_a_folder_of_two_names_counts_once_and_the_log_says_so(tmp_path: Path) -> None:
    """Under its own name where it lies below the root, however links to it are called."""
    root = make_files(tmp_path / "root", "own/1.jpg", "own/deep/2.jpg")
    make_files(tmp_path, "far/3.jpg")
    for name, target in (("a", "own"), ("x", tmp_path / "far"), ("y", tmp_path / "far")):
        (root / name).symlink_to(target)
    assert found(root) == ["own/1.jpg", "own/deep/2.jpg", "x/3.jpg"]
    said = ImageFolder(str(root)).found
    assert "3 images in 4 folder(s)" in said
    assert said.endswith("; left out: 2 folders that links reach again (a)")


def test_links_to_folders_elsewhere_are_followed_in_chains(tmp_path: Path) -> None:
    root = make_files(tmp_path / "root", "0.jpg")
    make_files(tmp_path, "one/1.jpg", "two/2.jpg", "three/3.jpg")
    (root / "link").symlink_to(tmp_path / "alias")
    (tmp_path / "alias").symlink_to(tmp_path / "one")
    (tmp_path / "one/next").symlink_to(tmp_path / "two")
    (tmp_path / "two/next").symlink_to(tmp_path / "three")
    (tmp_path / "three/first").symlink_to(root)
    (root / "picture.jpg").symlink_to(tmp_path / "one/1.jpg")
    assert found(root) == [
        *("0.jpg", "link/1.jpg", "link/next/2.jpg", "link/next/next/3.jpg", "picture.jpg")
    ]


def test_class_folders_may_be_links_but_not_to_each_other(tmp_path: Path) -> None:
    root = make_files(tmp_path / "train", "ant/1.jpg")
    make_files(tmp_path, "store/n02/2.jpg", "store/n02/sub/3.jpg")
    (root / "bee").symlink_to(tmp_path / "store/n02")
    (root / "ant/all").symlink_to(root)  # its bees are no ants
    pictures = class_folders(str(root))
    assert (pictures.classes, pictures.labels.tolist()) == (["ant", "bee"], [0, 1, 1])
    (root / "aaa").symlink_to("ant")
    with pytest.raises(ValueError, match="aaa and ant are one folder, by links"):
        class_folders(str(root))


@pytest.mark.parametrize("names", [("a_puppy", "b_dog"), ("b_puppy", "a_dog")])
def test_a_folder_that_two_classes_have_is_of_neither(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    make_files(tmp_path, "store/dog/1.jpg", "store/dog/puppy/2.jpg", "train/cat/3.jpg")
    for name, target in zip(names, ("dog/puppy", "dog"), strict=True):
        (tmp_path / "train" / name).symlink_to(tmp_path / "store" / target)
    with pytest.raises(ValueError, match=r"are one folder, by links: its pictures are of class"):
        class_folders(str(tmp_path / "train"))
    assert len(found(tmp_path / "train")) == 3  # where labels are not read


def test_a_folder_that_the_file_system_makes_is_no_class(tmp_path: Path) -> None:
    make_files(tmp_path, "ant/1.jpg", "lost+found/2.jpg")
    assert class_folders(str(tmp_path)).classes == ["ant"]
    assert found(tmp_path) == ["ant/1.jpg"]


def test_hidden_files_and_those_of_systems_are_neither_pictures_nor_classes(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/2.jpg", "b/x.y/3.jpg"]
    hidden = ["a/._1.jpg", "b/.2.jpg", ".ipynb_checkpoints/1.jpg", ".empty/x/y.txt", "a/.DS_Store"]
    hidden += ["a/@eaDir/1.jpg", "__MACOSX/a/1.jpg", "$RECYCLE.BIN/1.jpg", "#recycle/1.jpg"]
    hidden += ["System Volume Information/1.jpg", "b/x.y/.git/1.jpg", "a/PaxHeaders.7/1.jpg"]
    root = make_files(tmp_path / ".data", *names, *hidden)  # the root may have any name
    os.chmod(root / ".empty", 0)
    try:
        pictures = class_folders(str(root))
        assert found(root) == names
    finally:
        os.chmod(root / ".empty", 0o700)
    assert (pictures.classes, pictures.labels.tolist()) == (["a", "b"], [0, 1, 1])
    assert "left out: 9 hidden folders (#recycle), 3 hidden (a/.DS_Store)" in pictures.found


def test_what_is_left_out_is_counted_by_reason_with_an_example(tmp_path: Path) -> None:
    others = ["b.pjpeg", "d.tga", "e.jp2", "f.GIF", "sub/g.gif", "none", "z.", "x." + "y" * 30]
    others += [".a.png", "b/cover"]
    make_files(tmp_path, "a.jpg", "b.JPG", "b.jpeg.jpg", "c.jfif", "d.jpe", "e.pbm", "f.pnm")
    make_files(tmp_path, *others, "folder.jpg/in.PNG")
    (tmp_path / "gone.jpg").symlink_to("nothing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "pipe too.jpg").symlink_to("pipe.jpg")
    (tmp_path / "again").symlink_to("sub")
    said = ImageFolder(str(tmp_path)).found
    assert said.startswith(f"8 images in 4 folder(s) ({tmp_path} and below) found in 0.")
    assert said.partition("; left out: ")[2] == (
        "3 without suffix (b/cover), 2 .gif, 2 pipes or devices (pipe too.jpg), 1 .jp2, 1 .pjpeg, "
        "1 .tga, 1 folder that links reach again (again), 1 hidden (.a.png), 2 of 2 more kinds"
    )


def test_pictures_beside_class_folders_are_counted(tmp_path: Path) -> None:
    make_files(tmp_path, "a/1.jpg", "b/2.jpg", "cover.jpg", "back.png")
    assert class_folders(str(tmp_path)).found.endswith(
        "; left out: 2 in no class folder (back.png)"
    )


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    make_files(tmp_path, "a.gif", "b.gif")
    with pytest.raises(ValueError, match=r"holds no picture, .*\.npy\); left out: 2 \.gif"):
        ImageFolder(str(tmp_path))


def test_an_empty_class_says_what_it_holds(tmp_path: Path) -> None:
    make_files(tmp_path, "a/1.jpg", "b/2.gif", ".c/x.txt")
    with pytest.raises(
        ValueError, match=r"without pictures: b; .*; left out: 1 \.gif, 1 hidden fo"
    ):
        class_folders(str(tmp_path))


def test_all_suffixes_of_a_format_give_the_same_picture(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpeg", "3.jfif", "4.jpe", "5.JPE"):
        (tmp_path / name).write_bytes(jpeg(16))
    for name in ("6.pbm", "7.pnm"):
        Image.new("1", (16, 16)).save(tmp_path / name, "PPM")
    pictures = ImageFolder(str(tmp_path))
    pixels: list[Any] = [pictures[index][0] for index in range(7)]
    assert all(torch.equal(other, pixels[0]) for other in pixels[:5])
    assert [np.asarray(other).sum() for other in pixels[5:]] == [0, 0]


def test_a_long_search_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path, *(f"{index // 4}/{index}.jpg" for index in range(12)))
    monkeypatch.setattr(listing, "_TELL_EVERY", 0.0)
    monkeypatch.setattr(listing, "_BATCH", 2)
    assert len(find_pictures(str(tmp_path)).names) == 12
    said = capsys.readouterr().err.splitlines()
    assert f"listing {tmp_path}: 12 pictures so far" in said


def test_links_that_lead_nowhere_are_no_folders(tmp_path: Path) -> None:
    make_files(tmp_path, "a/1.jpg")
    (tmp_path / "gone").symlink_to("nothing")
    (tmp_path / "below").symlink_to("a/1.jpg/none")
    assert found(tmp_path) == ["a/1.jpg"]
    assert class_folders(str(tmp_path)).classes == ["a"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    """Its path is longer than a system call takes, which stops every user."""
    make_files(tmp_path, "a.jpg")
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("x" * 250)
            os.chdir("x" * 250)
    finally:
        os.chdir(before)
    with pytest.raises(ValueError, match=r"/x{250}/.*cannot be listed: File name too long; with"):
        find_pictures(str(tmp_path))


def test_a_long_name_does_not_make_the_others_take_more_memory() -> None:
    """One of 100,000 letters among 20,000 does not make all as long."""
    words = [b"%05d.jpg" % number for number in range(20_000)] + [b"x" * 100_000, b""]
    names = Names(words)
    assert list(names) == words
    assert (names[3], names[-2], len(names)) == (words[3], words[-2], len(words))
    assert len(names.content) + names.ends.nbytes < 500_000
    with pytest.raises(IndexError):
        names[len(words)]
    assert list(Names([])) == []


def test_names_are_chosen_by_ranges_and_endings() -> None:
    words = [b"", b"a.NPY", b"npy", b"x.npy", b"b.jpg", b".npy", b"\xff.Npy"]
    names = Names(words)
    assert list(names.take([(4, 6), (0, 0), (1, 2)])) == [b"b.jpg", b".npy", b"a.NPY"]
    assert list(Names.joined([])) == []
    assert names.ending_with(".npy").tolist() == [False, True, False, True, False, True, True]
    assert Names([]).ending_with(".npy").tolist() == []
