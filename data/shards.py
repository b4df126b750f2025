"""Pictures in uncompressed tar files (the layout of webdataset), with random access."""

import functools
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.left_out import HIDDEN, HIDDEN_FOLDER, LeftOut, is_hidden, reason_against
from data.listing import Listing, Names, Progress, require_one_kind, require_path, unlisted
from data.members import LABEL_SUFFIX, Members, read_members, require_inside
from data.pictures import FAST_RGB, NO_LABEL, Decoder, Picture, read_patiently
from data.tar_index import INDEX_SUFFIX, NotBelievedError, read_index, write_index
from utils.digest import digest_of
from utils.files import open_regular, read_regular
from utils.messages import one_line, reason_of, short, shown
from utils.processes.sharing import make_once_per_machine

__all__ = [
    "CLASSES_FILE",
    "INDEX_SUFFIX",
    "LABEL_SUFFIX",
    "Shards",
    "classes_text",
    "entries_of",
    "tar_files",
    "write_index",
]

CLASSES_FILE = "classes.txt"
MOST_CLASSES = 10**7  # the limit of MODEL.NUM_CLASSES
_LARGEST_CLASSES_FILE = 2**28  # bytes
_TAR_SUFFIX = ".tar"
_OPEN_FILES = 128
SUBFOLDER = "folder(s) beside the tar files"
LOOSE = "picture(s) beside the tar files"


@dataclass
class _Found:
    """The pictures of all tar files together, in their order."""

    listing: Listing
    tars: list[str]
    tar_of: np.ndarray
    places: np.ndarray


class Shards:
    """All pictures in the tar files of a folder, by file name and then by position in the file.

    An index beside a tar file (`python -m tools.shard` writes it) holds each picture's position;
    without one, the file's headers are read once. Pictures are read in any order: shuffling,
    resuming and randomness are those of a folder of pictures. `found` describes the search.
    ValueError names a file that is no uncompressed tar file, or is truncated.
    """

    def __init__(self, root: str, decode: Decoder = FAST_RGB) -> None:
        require_path(root)
        self.root, self.decode = root, decode
        found = make_once_per_machine(f"tar files of {root}", lambda: _find(root))
        self.tars, self.tar_of, self.places = found.tars, found.tar_of, found.places
        self.names, self.found = found.listing.names, str(found.listing)
        self.labels = self.places["label"]
        self.files: OrderedDict[int, int] = OrderedDict()  # tar -> descriptor, oldest use first

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """A picture and its label, NO_LABEL where it has none."""
        return self.decode(self.content(index), self.name(index)), int(self.labels[index])

    def content(self, index: int) -> bytes:
        """A picture's file."""
        offset, size, _ = self.places[index].tolist()
        tar, name = int(self.tar_of[index]), self.name(index)
        return read_patiently(lambda: os.pread(self._open(tar), size, offset), name, self.root)

    @property
    def digest(self) -> str:
        """Digest of the pictures' names, places and labels in the tar files."""
        tars = "/".join(os.path.basename(path) for path in self.tars)
        return digest_of(tars, self.tar_of, self.places, self.names.digest)

    def name(self, index: int) -> str:
        """Path of the tar file and the picture's name in it."""
        return one_line(f"{self.tars[int(self.tar_of[index])]}: {os.fsdecode(self.names[index])}")

    @functools.cached_property
    def classes(self) -> list[str]:
        """Class names in `classes.txt`, else "0", "1", ...

        ValueError where a picture has no label, and where two classes have the same name: reports,
        lists of labels and other class orders could not distinguish them.
        """
        if (self.labels == NO_LABEL).any():
            name = os.fsdecode(self.names[int(np.argmax(self.labels == NO_LABEL))])
            raise ValueError(
                f"{self.root}: picture {short(name)} has no label (no {LABEL_SUFFIX} file)"
            )
        number = int(self.labels.max()) + 1
        if number > MOST_CLASSES:
            raise ValueError(f"{self.root}: a label is {number - 1}, beyond {MOST_CLASSES} classes")
        path = Path(self.root, CLASSES_FILE)
        try:
            content = read_regular(path, _LARGEST_CLASSES_FILE)
        except FileNotFoundError:
            return [str(label) for label in range(number)]
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {reason_of(error)}") from None
        names = _class_names(content)
        if len(names) < number:
            raise ValueError(f"{path} names {len(names)} classes, but a label is {number - 1}")
        lines: dict[str, int] = {}
        for line, name in enumerate(names, start=1):
            if not name:
                raise ValueError(f"{path}, line {line} is empty, expected the name of a class")
            if lines.setdefault(name, line) != line:
                raise ValueError(
                    f"{path}, lines {lines[name]} and {line}: two classes {shown(name)}: "
                    "give each a name of its own (of ImageNet: the WordNet ID)"
                )
        return names

    def require_all_classes(self) -> None:
        """ValueError where `classes.txt` names more classes than the labels reach.

        The names may then belong to other labels, as where one name took two lines.
        """
        names, number = self.classes, int(self.labels.max()) + 1
        if len(names) > number:
            raise ValueError(
                f"{Path(self.root, CLASSES_FILE)} names {len(names)} classes, but the largest "
                f"label is {number - 1}: do names and labels belong together? Add the tar files of "
                "the other classes, or remove their lines at the end"
            )

    def _open(self, tar: int) -> int:
        if tar not in self.files:
            if len(self.files) == _OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
            self.files[tar] = open_regular(self.tars[tar])
        self.files.move_to_end(tar)
        return self.files[tar]

    def __getstate__(self) -> dict[str, object]:
        """Omit open files, which are not valid in another process."""
        return self.__dict__ | {"files": OrderedDict()}


def classes_text(names: Sequence[str]) -> bytes:
    """The content of `classes.txt`: one class a line; ValueError where a name has a line's end."""
    for name in names:
        if "\n" in name or name.endswith("\r"):
            raise ValueError(
                f"class {shown(name)} has a newline in its name, and {CLASSES_FILE} has one class "
                "in a line: rename its folder"
            )
    return "".join(f"{name}\n" for name in names).encode(errors="surrogateescape")


def _class_names(content: bytes) -> list[str]:
    """The lines of `classes.txt`, which end at newlines only: names may hold other separators."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    if lines and all(line.endswith(b"\r") for line in lines):  # edited on Windows
        lines = [line[:-1] for line in lines]
    return [line.decode(errors="surrogateescape") for line in lines]


def _find(root: str) -> _Found:
    """Locate the pictures of all tar files in a folder."""
    start, left_out = time.perf_counter(), LeftOut()
    tars = tar_files(root, left_out)
    if not tars:
        raise ValueError(
            f"DATA.DATA_PATH {root} holds no {_TAR_SUFFIX} file (python -m tools.shard)"
            f"{left_out.words()}"
        )
    progress, number = Progress(root), 0
    parts: list[Members] = []
    reread: dict[str, str] = {}
    for path in tars:
        members, why = _members_of(path)
        if why:
            reread[path] = why
        parts.append(members)
        left_out.update(members.left_out, os.fsencode(f"{os.path.basename(path)}: "))
        number += len(members)
        progress(number)
    names = Names.joined([part.names for part in parts])
    require_one_kind(names, root)
    listing = Listing(root, names, left_out)
    listing.num_tars, listing.seconds = len(tars), time.perf_counter() - start
    if reread:
        first = min(reread)
        listing.notes.append(
            f"read the headers of {len(reread)} tar file(s) ({os.path.basename(first)}: "
            f"{reread[first]}); python -m tools.shard --index {root} saves that"
        )
    open_ended = [path for path, part in zip(tars, parts, strict=True) if not part.ended]
    if open_ended:
        first = os.path.basename(open_ended[0])
        listing.notes.append(
            f"{len(open_ended)} tar file(s) have no end mark and may be cut off ({first})"
        )
    tar_of = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    return _Found(listing, tars, tar_of, np.concatenate([part.places for part in parts]))


def tar_files(root: str, left_out: LeftOut) -> list[str]:
    """Paths of the tar files in a folder, sorted; count other files.

    ValueError where the folder cannot be listed.
    """
    paths = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                is_folder = entry.is_dir()
                if is_hidden(name):
                    left_out.add(HIDDEN_FOLDER if is_folder else HIDDEN, name)
                elif entry.name.lower().endswith(_TAR_SUFFIX):
                    paths.append(os.path.join(root, entry.name))
                elif is_folder:
                    left_out.add(SUBFOLDER, name)
                elif entry.name != CLASSES_FILE and not entry.name.endswith(INDEX_SUFFIX):
                    left_out.add(reason_against(name) or LOOSE, name)
    except OSError as error:
        raise unlisted(os.fsencode(root), error) from None
    return sorted(paths)


def _members_of(path: str) -> tuple[Members, str]:
    """A tar file's pictures, and why its headers were read: empty if the index was believed."""
    try:
        return read_index(path), ""
    except NotBelievedError as error:
        why = str(error)
    members = read_members(path)
    require_inside(path, members, os.path.getsize(path))
    return members, why


def entries_of(path: str) -> Members:
    """Locate the pictures of a tar file by its index if that is of this file, else its headers.

    ValueError names a file that cannot be read, is truncated, or holds no picture or one > 2 GiB.
    """
    return _members_of(path)[0]
