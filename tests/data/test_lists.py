"""Lists of pictures: what is read, and which line is wrong."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.labelled import LabelledPictures, csv_list, listed_pictures
from utils.messages import reason_of

HEADER = "path,label\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with names that lists stumble over."""
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "x,y.png", "c\u2028d.png", 'e"f.png', "sub/g.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, text: str | bytes) -> LabelledPictures:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return csv_list(str(path), None)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\ufeffpath,label\r\na.png,cat\r\nb.png,dog\r\n\r\n\n", {"a.png": "cat", "b.png": "dog"}),
        ('path,label\n"x,y.png","a, b"\n', {"x,y.png": "a, b"}),
        ("path,label\nc\u2028d.png,form\ffeed\n", {"c\u2028d.png": "form\ffeed"}),
        ('path,label\ne"f.png,it"s\n"e""f.png","it""s"\n', {'e"f.png': 'it"s'}),
        (",label, path \n0, cat ,a.png\n1,dog,b.png\n", {"a.png": "cat", "b.png": "dog"}),
        ("path,label\n./a.png,x\nsub/../b.png,x\n", {"./a.png": "x", "sub/../b.png": "x"}),
        ("path,label\n{folder}/a.png,x", {"{folder}/a.png": "x"}),
    ],
)
def test_what_other_programs_write_is_read(folder: Path, text: str, rows: dict[str, str]) -> None:
    pictures = read(folder, text.replace("{folder}", str(folder)))
    names = list(map(os.fsdecode, pictures.names))
    labels = [pictures.classes[label] for label in pictures.labels]
    assert dict(zip(names, labels, strict=True)) == {
        name.replace("{folder}", str(folder)): label for name, label in rows.items()
    }
    assert len(pictures[0]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{HEADER}a.png,cat\n\nx,y.png,dog\n",
            r"line 4: 3 field\(s\) instead of 2: 'x,y.png,dog'",
        ),
        (f"{HEADER}a.png\n", r"line 2: 1 field\(s\) instead of 2"),
        (f"{HEADER}a.png,cat\n,,\n", r"line 3: 3 field\(s\)"),
        (f"{HEADER}a.png,\n", "line 2: its label is empty"),
        (f"{HEADER}a.png, \n", "line 2: its label is empty"),
        (f"{HEADER},cat\n", "line 2: its path is empty"),
        (f'{HEADER}a.png,cat\n"b.png,dog\nc.png,cat\n', "line 3: .*is a quote not closed"),
        (f'{HEADER}a.png,"cat\nb.png,dog\nc.png,"cat"\n', "line 2: .*is a quote not closed"),
        (f'{HEADER}"a.png,cat\nb.png",dog\n', "line 2: a path that goes on in the next line"),
        (f'{HEADER}a.png,"cat\nb.png,"\n', "line 2: a label that goes on in the next line"),
        (f'{HEADER}b.png,"x\n', "line 2: unexpected end of data"),
        (f"{HEADER}a.png,cat\n{'x' * 131_073},dog\n", "line 3: field larger than field limit"),
        (f"{HEADER}a.png,cat\nb\0.png,dog\n", "is not text in UTF-8"),
        (f"{HEADER}a.png,cat\n".encode("utf-16"), "is not text in UTF-8"),
        ("path,label,label\na.png,cat,dog\n", "two columns are called 'label'"),
        ("path;label\na.png;cat\n", "separated by ; or tabs, expected commas"),
        ('"path"\t"label"\n"a.png"\t"cat"\n', "separated by ; or tabs, expected commas"),
        (
            f"{HEADER}a.png,cat\n./a.png,dog\n",
            r"lines 2 and 3: \./a\.png has two labels, 'cat' and",
        ),
        (f"{HEADER}", "has no rows below its first line"),
    ],
)
def test_a_broken_row_is_named_and_makes_no_class(
    folder: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, text)
    assert len(reason_of(caught.value)) < 300
    assert "list.csv" in str(caught.value)


def test_files_that_are_not_there_are_counted_and_the_first_is_named(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"2 of 3 files are not there; the first, in line 3, is a "
    ):
        read(folder, f"{HEADER}a.png,cat\na,cat\nsub,cat\n")
    with pytest.raises(ValueError, match=r"1 of 1 files .* is sub\\g\.png, but with / in place of"):
        read(folder, f"{HEADER}sub\\g.png,cat\n")
    with pytest.raises(ValueError, match=r"is a\.png, but without the space around its name it is"):
        read(folder, f"{HEADER} a.png,cat\n")


def test_of_a_long_list_some_files_are_looked_for(folder: Path) -> None:
    rows = [f"{'./' * (number % 7)}a.png,cat" for number in range(5000)]
    rows += [f"none{number}.png,cat" for number in range(1000)]
    with pytest.raises(
        ValueError,
        match=r"333 of 2000 files that were looked for \(of 6000\) .* line 5003, is none",
    ):
        read(folder, "\n".join(["path,label", *rows]))


def test_rows_that_repeat_a_path_are_counted(folder: Path) -> None:
    pictures = read(folder, f"{HEADER}a.png,cat\nb.png,cat\n./a.png,cat\na.png,cat\n")
    assert len(pictures) == 4
    assert str(pictures.found).endswith(
        "2 row(s) repeat the path of an earlier one, the first is line 4: ./a.png"
    )
    assert read(folder, f"{HEADER}a.png,cat\n").found == f"1 images in the list {folder}/list.csv"


def test_names_that_are_no_utf8_are_read_as_bytes(folder: Path) -> None:
    name = os.path.join(os.fsencode(folder), b"caf\xe9.png")
    Image.new("RGB", (8, 8)).save(os.fsdecode(name))
    assert read(folder, b"path,label\ncaf\xe9.png,x\n").names[0] == b"caf\xe9.png"


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero"])
def test_what_is_no_file_is_refused_at_once(folder: Path, kind: str) -> None:
    path = Path(kind) if kind.startswith("/") else folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    message = f"list {path} cannot be read: it is no regular file"
    with pytest.raises(ValueError, match=message):
        csv_list(str(path), None)
    with pytest.raises(ValueError, match=message):
        listed_pictures(str(folder / "sub"), str(path), ["a"])


def matlab_file(size: int) -> bytes:
    """A file of MATLAB, version 5, whose one compressed element inflates to `size` zeros."""
    part = zlib.compress(bytes(size), 9)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    return header + np.array([15, len(part)], "<u4").tobytes() + part


def test_a_table_that_is_no_file_or_inflates_to_all_memory_is_refused(folder: Path) -> None:
    truth, table = folder / "truth.txt", folder / "meta.mat"
    truth.write_text("1\n")
    table.write_bytes(matlab_file(2**26 + 1))
    assert len(table.read_bytes()) < 2**19
    with pytest.raises(ValueError, match=r"meta\.mat .* it inflates to more than 67108864 bytes"):
        listed_pictures(str(folder / "sub"), str(truth), ["a", "b"])
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(ValueError, match=r"meta\.mat .* it is no regular file"):
        listed_pictures(str(folder / "sub"), str(truth), ["a", "b"])
