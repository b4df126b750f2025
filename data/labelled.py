"""Labelled picture files: class folders, CSV lists, a flat folder with a ground-truth list."""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.listing import (
    Names,
    find_pictures,
    list_pictures,
    require_one_kind,
    require_path,
)
from data.lists import (
    Row,
    development_kit_classes,
    read_csv,
    read_labels,
    require_files,
    rows_that_repeat,
)
from data.pictures import EXACT_RGB, Decoder, Picture, read_file
from utils.digest import digest_of
from utils.messages import one_line, short, shown
from utils.processes.sharing import make_once_per_machine

_DIGITS = 18  # of a label that is sorted by value


class LabelledPictures:
    """Picture files below `root` with labels, which are indices into `classes`.

    `found` describes the search, for the log.
    """

    def __init__(
        self,
        root: str,
        names: Sequence[bytes] | Names,
        labels: Sequence[int] | np.ndarray,
        classes: list[str],
        decode: Decoder,
        found: str = "",
    ) -> None:
        self.root = root
        self.names = names if isinstance(names, Names) else Names(names)
        self.labels = np.array(labels, dtype=np.int64)
        self.classes, self.decode, self.found = classes, decode, found

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """Picture and label; ValueError names a file that cannot be read."""
        return self.decode(self.content(index), self.name(index)), int(self.labels[index])

    def content(self, index: int) -> bytes:
        """A picture's file."""
        return read_file(self.path(index))

    @property
    def digest(self) -> str:
        """Digest of names and labels."""
        return digest_of(self.names.digest, self.labels)

    def path(self, index: int) -> str:
        """A picture's path."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def name(self, index: int) -> str:
        """A picture's path, as in messages."""
        return one_line(self.path(index))


def class_folders(root: str, decode: Decoder = EXACT_RGB) -> LabelledPictures:
    """Find ROOT/CLASS/.../picture, classes sorted; ValueError names classes without pictures."""
    require_path(root)
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder, expected one with a folder for each class")
    names, labels, classes, found = make_once_per_machine(
        f"class folders of {root}", lambda: _find_classes(root)
    )
    return LabelledPictures(root, names, labels, classes, decode, found)


def _find_classes(root: str) -> tuple[Names, np.ndarray, list[str], str]:
    """Pictures by class, their labels, the classes, and words for the search."""
    listing = list_pictures(root, nested=True)
    classes = sorted(map(os.fsdecode, listing.subfolders))
    if not classes:
        raise ValueError(
            f"{root} holds no class folders (DATA.VAL_LABELS names a list of labels)"
            f"{listing.left_out.words()}"
        )
    ranges = [_below(os.fsencode(name), listing.names) for name in classes]
    numbers = [last - first for first, last in ranges]
    if not all(numbers):
        empty = [name for name, number in zip(classes, numbers, strict=True) if not number]
        raise ValueError(
            f"{root}: class folders without pictures: {_first(empty)}; remove them, or the links "
            f"that lead back, or put pictures there{listing.left_out.words()}"
        )
    labels = np.repeat(np.arange(len(classes)), numbers)
    return listing.names.take(ranges), labels, classes, str(listing)


def _below(folder: bytes, names: Names) -> tuple[int, int]:
    """The range of sorted paths that lie in a folder; the byte after "/" is "0"."""
    return bisect_left(names, folder + b"/"), bisect_left(names, folder + b"0")


def csv_list(
    path: str, classes: Sequence[str] | None, decode: Decoder = EXACT_RGB
) -> LabelledPictures:
    """Read a CSV file with the columns `path` (relative to the file) and `label` (a class).

    If `classes` is None, the classes are the labels in the file, sorted (numbers by value).
    ValueError names the row that is wrong, has a label that is not among the classes, or another
    one than an earlier row of the same path; and the first file that is not there.
    """
    rows, folder = read_csv(path), os.path.dirname(path)
    repeating = rows_that_repeat(rows, path)
    names = list(classes) if classes is not None else _sorted_classes({row.label for row in rows})
    labels = _indices(rows, names, path)
    require_files(rows, folder, path)
    found = f"{len(rows)} images in the list {path}"
    if repeating:
        first = repeating[0]
        found += (
            f"; {len(repeating)} row(s) repeat the path of an earlier one, the first is line "
            f"{first.line}: {short(first.path)}"
        )
    paths = Names([os.fsencode(row.path) for row in rows])
    require_one_kind(paths, path)
    return LabelledPictures(folder, paths, labels, names, decode, found)


def listed_pictures(
    root: str, path: str, classes: Sequence[str], decode: Decoder = EXACT_RGB
) -> LabelledPictures:
    """Find all pictures below `root` and take their labels from the list in the file `path`.

    Its lines are `name label`, or `label` alone for the pictures in sorted order. A label is a
    class or its index. The development kit's ILSVRC2012_validation_ground_truth.txt has its own
    class numbers, which are translated by `meta.mat` beside it. ValueError where pictures and lines
    do not match or a label is no class.
    """
    listing = find_pictures(root)
    pictures = sorted(map(os.fsdecode, listing.names))
    rows = read_labels(path)
    named = bool(rows and rows[0].path)
    names = [os.path.normpath(row.path) for row in rows] if named else pictures
    if sorted(names) != pictures or len(rows) != len(pictures):
        different = sorted(set(names) ^ set(pictures))
        detail = f"; not in both: {_first(different)}" if different else ""
        raise ValueError(
            f"{path} lists {len(rows)} labels, {root} holds {len(pictures)} pictures{detail}"
        )
    table = Path(path).with_name("meta.mat")
    if not named and table.exists():
        known = development_kit_classes(table, classes)
        rows = [row._replace(label=known.get(row.label, row.label)) for row in rows]
    labels = _indices(rows, classes, path)
    encoded = list(map(os.fsencode, names))
    return LabelledPictures(root, encoded, labels, list(classes), decode, str(listing))


def first_of_each_class(
    labels: Sequence[int] | np.ndarray, number: int, classes: Sequence[str]
) -> list[int]:
    """Indices of the first `number` samples of every class; ValueError where a class has fewer."""
    found = np.asarray(labels)
    chosen = []
    for label, name in enumerate(classes):
        indices = np.flatnonzero(found == label)[:number]
        if len(indices) < number:
            raise ValueError(
                f"DATA.IMAGES_PER_CLASS is {number}, but class {short(name)} has "
                f"{len(indices)} pictures"
            )
        chosen += indices.tolist()
    return chosen


def _indices(rows: Sequence[Row], classes: Sequence[str], source: str) -> list[int]:
    """Convert labels to class indices; if no class is a number, a number is an index.

    ValueError where a label is no class, or the name of two classes.
    """
    lookup: dict[str, int] = {}
    twice = {name for name, number in Counter(classes).items() if number > 1}
    if not any(name.isdecimal() for name in classes):
        lookup = {str(index): index for index in range(len(classes))}
    lookup |= {name: index for index, name in enumerate(classes)}
    for line, _, word in rows:
        if word not in lookup:
            raise ValueError(
                f"{source}, line {line}: label {shown(word)} is none of the {len(classes)} classes "
                f"({_first(classes)})"
            )
        if word in twice:
            raise ValueError(f"{source}, line {line}: two classes are called {word!r}")
    return [lookup[row.label] for row in rows]


def _sorted_classes(words: set[str]) -> list[str]:
    """Sort class names; by value if all are numbers, equal ones such as 1 and 01 as text."""
    numbers = all(word.isdecimal() and len(word) <= _DIGITS for word in words)
    return sorted(words, key=lambda word: (int(word) if numbers else 0, word))


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(short, names[:3])) + (", ..." if len(names) > 3 else "")
