"""Labelled picture files: class folders, CSV lists, a flat folder with a ground-truth list."""

import csv
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from data.listing import Names, digest_of, find_pictures, list_pictures, require_path
from data.pictures import RGB, Picture, read_picture
from utils.messages import reason_of, short, shown
from utils.processes.sharing import make_once_per_machine


class LabelledPictures:
    """Picture files below `root` with labels, which are indices into `classes`.

    Pictures are read as `channels` channels; `found` describes the search, for the log.
    """

    def __init__(
        self,
        root: str,
        names: Sequence[bytes] | Names,
        labels: Sequence[int] | np.ndarray,
        classes: list[str],
        channels: int = RGB,
        found: str = "",
    ) -> None:
        self.root = root
        self.names = names if isinstance(names, Names) else Names(names)
        self.labels = np.array(labels, dtype=np.int64)
        self.classes, self.channels, self.found = classes, channels, found

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """Picture of `channels` channels and label; ValueError names a file that cannot be read."""
        return read_picture(self.name(index), self.channels), int(self.labels[index])

    @property
    def digest(self) -> str:
        """Digest of names and labels."""
        return digest_of(self.names.digest, self.labels)

    def name(self, index: int) -> str:
        """A picture's path."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))


def class_folders(root: str, channels: int = RGB) -> LabelledPictures:
    """Find ROOT/CLASS/.../picture, classes sorted; ValueError names classes without pictures."""
    require_path(root)
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder, expected one with a folder for each class")
    names, labels, classes, found = make_once_per_machine(
        f"class folders of {root}", lambda: _find_classes(root)
    )
    return LabelledPictures(root, names, labels, classes, channels, found)


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


def csv_list(path: str, classes: Sequence[str] | None, channels: int = RGB) -> LabelledPictures:
    """Read a CSV file with the columns `path` (relative to the file) and `label` (a class).

    If `classes` is None, the classes are the labels in the file, sorted (numbers by value).
    ValueError where a column is missing or a label is not among the classes.
    """
    rows = list(csv.DictReader(_read_text(path).splitlines()))
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise ValueError(f"{path} has no rows, or not the columns path,label in its first line")
    words = [(row["label"] or "").strip() for row in rows]
    names = list(classes) if classes is not None else _sorted_classes(set(words))
    folder = os.path.dirname(path)
    paths = [os.fsencode(row["path"] or "") for row in rows]
    labels = _indices(words, names, path, first_line=2)
    return LabelledPictures(folder, paths, labels, names, channels)


def listed_pictures(
    root: str, path: str, classes: Sequence[str], channels: int = RGB
) -> LabelledPictures:
    """Find all pictures below `root` and take their labels from the list in the file `path`.

    Its lines are `name label`, or `label` alone for the pictures in sorted order. A label is a
    class or its index. The development kit's ILSVRC2012_validation_ground_truth.txt has its own
    class numbers, which are translated by `meta.mat` beside it. ValueError where pictures and lines
    do not match or a label is no class.
    """
    pictures = sorted(map(os.fsdecode, find_pictures(root).names))
    lines = [line.split() for line in _read_text(path).splitlines() if line.strip()]
    names, words = pictures, [line[-1] for line in lines]
    if any(len(line) > 1 for line in lines):
        names = [os.path.normpath(" ".join(line[:-1])) for line in lines]
    if sorted(names) != pictures or len(words) != len(pictures):
        different = sorted(set(names) ^ set(pictures))
        detail = f"; not in both: {_first(different)}" if different else ""
        raise ValueError(
            f"{path} lists {len(words)} labels, {root} holds {len(pictures)} pictures{detail}"
        )
    table = Path(path).with_name("meta.mat")
    if names is pictures and table.exists():
        words = _development_kit_labels(words, table, classes)
    labels = _indices(words, classes, path, first_line=1)
    return LabelledPictures(root, list(map(os.fsencode, names)), labels, list(classes), channels)


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


def _indices(words: list[str], classes: Sequence[str], source: str, first_line: int) -> list[int]:
    """Convert labels to class indices; if no class is a number, a number is an index.

    ValueError where a label is no class, or the name of two classes.
    """
    lookup: dict[str, int] = {}
    twice = {name for name, number in Counter(classes).items() if number > 1}
    if not any(name.isdecimal() for name in classes):
        lookup = {str(index): index for index in range(len(classes))}
    lookup |= {name: index for index, name in enumerate(classes)}
    for line, word in enumerate(words, start=first_line):
        if word not in lookup:
            raise ValueError(
                f"{source}, line {line}: label {shown(word)} is none of the {len(classes)} classes "
                f"({_first(classes)})"
            )
        if word in twice:
            raise ValueError(f"{source}, line {line}: two classes are called {word!r}")
    return [lookup[word] for word in words]


def _development_kit_labels(words: list[str], table: Path, classes: Sequence[str]) -> list[str]:
    """Translate ILSVRC2012_ID to WNID, or to its sorted index where the classes have no names."""
    try:
        synsets = loadmat(table, squeeze_me=True)["synsets"]
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
    labels = {str(number): wnid for number, wnid in wnids.items()}
    return [labels.get(word, word) for word in words]


def _sorted_classes(words: set[str]) -> list[str]:
    """Sort class names; by value if all are numbers."""
    numbers = all(word.isdecimal() for word in words)
    return sorted(words, key=int) if numbers else sorted(words)


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"list {path} cannot be read: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise ValueError(f"list {path} cannot be read: it is not text in UTF-8") from None


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(short, names[:3])) + (", ..." if len(names) > 3 else "")
