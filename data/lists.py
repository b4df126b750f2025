"""Read lists of pictures with labels, strictly: CSV files, labels of ground truth, meta.mat."""

import csv
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.io import loadmat

from utils.files import read_regular
from utils.messages import reason_of, short, shown

_LARGEST_LIST = 2**30  # bytes; 20 million rows
_LARGEST_TABLE = 2**26  # bytes of meta.mat, also when inflated
_LOOKED_FOR = 2000  # files of a list, at most
_SPACE = re.compile(r"[ \t]+(?=[^ \t]+$)")  # before the last word of a line
_HEADER, _COMPRESSED = 128, 15  # of MATLAB's format, level 5: bytes, and a type of element


class Row(NamedTuple):
    """A line of a list (the first one of a row that has several), a path or "", and a label."""

    line: int
    path: str
    label: str


def read_csv(path: str) -> list[Row]:
    """Read the columns `path` and `label` of a CSV file; others are ignored.

    ValueError names the row that is not exactly one path and one label.
    """
    text = _read_text(path)
    first = text.partition("\n")[0]
    if "," not in first and (";" in first or "\t" in first):
        raise ValueError(f"{path}: its columns are separated by ; or tabs, expected commas")
    records = _records(text, path)
    _, header = next(records, (1, []))
    names = [name.strip() for name in header]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise ValueError(f"{path}: two columns are called {shown(twice[0])}")
    if not {"path", "label"} <= set(names):
        raise ValueError(
            f"{path} has not the columns path,label in its first line: {shown(short(first))}"
        )
    place, label = names.index("path"), names.index("label")
    rows = []
    for line, fields in records:
        if len(fields) != len(names):
            raise ValueError(
                f"{path}, line {line}: {len(fields)} field(s) instead of {len(names)}: "
                f"{shown(','.join(fields))} (a field with a comma needs quotes)"
            )
        row = Row(line, fields[place], fields[label].strip())
        _require_whole(row, path)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows below its first line")
    return rows


def _records(text: str, path: str) -> Iterator[tuple[int, list[str]]]:
    """Each row of a CSV file with the line where it begins; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if len(fields) > 1 or any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error} (is a quote not closed, or not doubled in a field?)"
        ) from None


def _require_whole(row: Row, path: str) -> None:
    """ValueError where a path or label is empty, or holds what follows a quote left open."""
    for name, field in (("path", row.path), ("label", row.label)):
        if not field.strip():
            raise ValueError(f"{path}, line {row.line}: its {name} is empty")
        if "\n" in field or "\r" in field:
            raise ValueError(
                f"{path}, line {row.line}: a {name} that goes on in the next line: {shown(field)} "
                "(is a quote not closed?)"
            )


def rows_that_repeat(rows: Sequence[Row], path: str) -> list[Row]:
    """Rows with the path of an earlier one; ValueError where their labels differ."""
    seen: dict[str, Row] = {}
    repeating = []
    for row in rows:
        # Behind a link, ".." leads elsewhere than normpath says.
        place = row.path if ".." in row.path else os.path.normpath(row.path)
        earlier = seen.setdefault(place, row)
        if earlier is not row:
            repeating.append(row)
        if earlier.label != row.label:
            raise ValueError(
                f"{path}, lines {earlier.line} and {row.line}: {short(row.path)} has two labels, "
                f"{shown(earlier.label)} and {shown(row.label)}"
            )
    return repeating


def require_files(rows: Sequence[Row], folder: str, path: str) -> None:
    """ValueError names the first of the files below `folder` that are not there.

    Of a long list some rows are looked for, spread over all: a wrong list is seldom wrong in few.
    """
    chosen = rows[:: -(-len(rows) // _LOOKED_FOR)]
    missing = [row for row in chosen if not os.path.isfile(os.path.join(folder, row.path))]
    if not missing:
        return
    first = missing[0]
    sample = "" if len(chosen) == len(rows) else f" that were looked for (of {len(rows)})"
    hint = ""
    if os.path.isfile(os.path.join(folder, first.path.replace("\\", "/"))):
        hint = ", but with / in place of \\ it is"
    elif os.path.isfile(os.path.join(folder, first.path.strip())):
        hint = ", but without the space around its name it is"
    raise ValueError(
        f"{path}: {len(missing)} of {len(chosen)} files{sample} are not there; the first, in line "
        f"{first.line}, is {short(first.path)}{hint} (paths are relative to {folder or '.'})"
    )


def read_labels(path: str) -> list[Row]:
    """Read lines of `name label`, or of `label` alone; blank lines are left out.

    ValueError names the line of the other kind than the first, or of a name that came before.
    """
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        *name, label = _SPACE.split(line.strip(" \t\r"), maxsplit=1)
        if not label:
            continue
        row = Row(number, "".join(name), label)
        if rows and bool(row.path) != bool(rows[0].path):
            raise ValueError(
                f"{path}: line {rows[0].line} is {_kind(rows[0])}, line {number} is {_kind(row)}: "
                f"{shown(line)}"
            )
        if row.path and seen.setdefault(os.path.normpath(row.path), number) != number:
            first = seen[os.path.normpath(row.path)]
            raise ValueError(f"{path}, lines {first} and {number} are both of {short(row.path)}")
        rows.append(row)
    return rows


def _kind(row: Row) -> str:
    return "a name and a label" if row.path else "a label alone"


def development_kit_classes(table: Path, classes: Sequence[str]) -> dict[str, str]:
    """Each ILSVRC2012_ID with its WNID, or its sorted index where the classes have no names.

    ValueError where `table` is not the development kit's meta.mat.
    """
    try:
        content = read_regular(table, _LARGEST_TABLE)
        _require_small(content)
        synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        wnids = {
            int(entry["ILSVRC2012_ID"]): str(entry["WNID"])
            for entry in synsets
            if int(entry["num_children"]) == 0
        }
    except Exception as error:  # broken files raise exceptions of many types
        raise ValueError(
            f"{table} is not the development kit's table: {reason_of(error)}"
        ) from None
    order = sorted(wnids.values())
    if list(classes) == [str(index) for index in range(len(order))]:
        wnids = {number: str(order.index(wnid)) for number, wnid in wnids.items()}
    return {str(number): wnid for number, wnid in wnids.items()}


def _require_small(content: bytes) -> None:
    """ValueError where compressed parts of a file of MATLAB would inflate to too much memory."""
    order = "<" if content[_HEADER - 2 : _HEADER] == b"IM" else ">"
    position, inflated = _HEADER, 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        position += 8
        if kind == _COMPRESSED:
            part = content[position : position + size]
            inflated += len(zlib.decompressobj().decompress(part, _LARGEST_TABLE + 1))
        if inflated > _LARGEST_TABLE:
            raise ValueError(f"it inflates to more than {_LARGEST_TABLE} bytes")
        position += size


def _read_text(path: str) -> str:
    """A list's text; bytes that are no UTF-8 stay what `os.fsencode` makes of them in names."""
    try:
        text = read_regular(path, _LARGEST_LIST).decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"list {path} cannot be read: {reason_of(error)}") from None
    except ValueError as error:
        raise ValueError(f"list {path} cannot be read: {error}") from None
    if "\0" in text:
        raise ValueError(f"list {path} cannot be read: it is not text in UTF-8")
    return text
