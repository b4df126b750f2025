"""Find the pictures below a folder, and store a million names compactly."""

import errno
import itertools
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.left_out import (
    HIDDEN,
    HIDDEN_FOLDER,
    IN_NO_CLASS,
    LINK_TO_NOTHING,
    NO_FILE,
    REPEATED,
    LeftOut,
    is_hidden,
    reason_against,
)
from data.pictures import ARRAY_SUFFIX
from utils.digest import digest_of
from utils.messages import short
from utils.processes.group import rank
from utils.processes.sharing import make_once_per_machine

# A link to what is gone, to itself, to a path below a file.
_LEADS_NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
_SEPARATOR = b"\0"  # of names in one string
_BATCH = 4096  # entries of a folder at a time
_TELL_EVERY = 10.0  # seconds


class Names:
    """Byte strings in one block that worker processes share; single strings would be copied.

    ImageNet's 1.28 million names take 50 MB.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        self.ends = _ends_of(lengths)
        self.content = np.frombuffer(b"".join(names), np.uint8)

    @classmethod
    def of(cls, content: np.ndarray, ends: np.ndarray) -> "Names":
        """Names of which the one at `index` is content[ends[index] : ends[index + 1]], uint8."""
        names = cls.__new__(cls)
        names.content, names.ends = content, ends
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> bytes:
        """The name at `index`, which may be negative."""
        index = range(len(self))[index]
        return self.content[self.ends[index] : self.ends[index + 1]].tobytes()

    @property
    def digest(self) -> str:
        """Digest of all names in order."""
        return digest_of(self.ends, self.content)

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    @classmethod
    def joined(cls, parts: Sequence["Names"]) -> "Names":
        """The names of all parts, one part after the other."""
        contents = [part.content[part.ends[0] : part.ends[-1]] for part in parts]
        lengths = [np.diff(part.ends) for part in parts]
        none = np.empty(0, np.uint8), np.empty(0, np.int64)
        ends = _ends_of(np.concatenate([none[1], *lengths]))
        return cls.of(np.concatenate([none[0], *contents]), ends)

    def take(self, ranges: Sequence[tuple[int, int]]) -> "Names":
        """The names of ranges (first, behind the last), one range after the other."""
        return Names.joined(
            [Names.of(self.content, self.ends[first : last + 1]) for first, last in ranges]
        )

    def ending_with(self, suffix: str) -> np.ndarray:
        """Which names (bool, one each) end with a suffix of small letters, in either case."""
        lengths, letters = np.diff(self.ends), suffix.encode()
        found = lengths >= len(letters)
        for back, letter in enumerate(reversed(letters), start=1):
            places = np.maximum(self.ends[1:] - back, 0)
            either = (letter, ord(chr(letter).upper()))
            found &= np.isin(self.content[places], either) if len(self.content) else False
        return found


def _ends_of(lengths: np.ndarray) -> np.ndarray:
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


@dataclass
class Listing:
    """Pictures below `root`, or in its tar files, and figures of the search.

    Names are paths relative to `root`, sorted as bytes, or those of the tar files' members.
    `subfolders` lie directly in `root`. `notes` tell what else a user should know.
    """

    root: str
    names: Names
    left_out: LeftOut
    num_folders: int = 0
    num_tars: int = 0
    seconds: float = 0.0
    subfolders: list[bytes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = f"{self.num_folders} folder(s) ({self.root} and below)"
        if self.num_tars:
            where = f"{self.num_tars} tar file(s) ({self.root})"
        text = f"{len(self.names)} images in {where} found in {self.seconds:.1f} s"
        return "; ".join((text + self.left_out.words(), *self.notes))


class Progress:
    """Tell on rank 0's standard error how many pictures a long search has found so far."""

    def __init__(self, root: str) -> None:
        self.root, self.told = root, time.monotonic()

    def __call__(self, number: int) -> None:
        """Tell the number, at most every ten seconds."""
        if time.monotonic() - self.told > _TELL_EVERY:
            self.told = time.monotonic()
            if rank() == 0:
                print(f"listing {self.root}: {number:,} pictures so far", file=sys.stderr)


def require_path(root: str) -> None:
    """Raise ValueError if no data path is given."""
    if not root:
        raise ValueError("DATA.DATA_PATH is empty, expected a folder of images (--data-path DIR)")


def find_pictures(root: str, nested: bool = False) -> Listing:
    """`list_pictures`, by one process on each machine; call it in all processes."""
    return make_once_per_machine(f"{nested} {root}", lambda: list_pictures(root, nested))


def list_pictures(root: str, nested: bool = False) -> Listing:
    """Find all pictures at any depth below `root`, also in folders that links lead to.

    `nested`, for class folders, omits pictures directly in `root`. Hidden files and folders are
    omitted.
    A folder with several paths, by links, counts once: under its own if that lies below `root`,
    else under the shortest chain of links, the first in sorted order. Cycles of links thus end.
    ValueError names a folder that cannot be listed or belongs to two classes, or `root` if pictures
    are mixed with arrays, whose values have other ranges.
    """
    require_path(root)
    if not os.path.isdir(root):
        raise ValueError(f"DATA.DATA_PATH {root} is not a folder, expected one that holds images")
    start = time.perf_counter()
    search = _Search(root, nested)
    search.follow_links()
    names = search.names()
    require_one_kind(names, root)
    seconds = time.perf_counter() - start
    return Listing(root, names, search.left_out, search.num_folders, 0, seconds, search.subfolders)


class _Search:
    """Folders below `root` with their entries."""

    def __init__(self, root: str, nested: bool) -> None:
        self.root, self.nested = root, nested
        # Folder -> its pictures, and its folders with "/" at the end, sorted, joined by NUL. One
        # string takes half as much memory as one for each name.
        self.entries: dict[bytes, bytes] = {}
        self.subfolders: list[bytes] = []
        self.left_out = LeftOut()
        self.num_folders = self.num_names = self.num_bytes = 0
        self.progress = Progress(root)

    def follow_links(self) -> None:
        """List `root`; then, round by round, the folders behind links of the round before."""
        seen: dict[int, bytes] = {}
        links = [b""]
        while links:
            further: list[bytes] = []
            for link in sorted(links):
                folders = [link]
                while folders:
                    folder = folders.pop()
                    identity = _identity(self.root, folder)
                    # Only folders behind a link can repeat. Without links, a file system with
                    # duplicate inode numbers thus loses no pictures.
                    if link and identity in seen:
                        self.left_out.add(REPEATED, folder)
                        if self.nested:
                            _require_same_class(self.root, folder, seen[identity])
                        continue
                    seen[identity] = folder
                    own, linked = self._list(folder)
                    if not folder:
                        self.subfolders = [*own, *linked]
                    folders += own
                    further += linked
            links = further

    def _list(self, folder: bytes) -> tuple[list[bytes], list[bytes]]:
        """Note a folder's entries; return the paths of its subfolders and links to folders."""
        path = os.path.join(os.fsencode(self.root), folder)
        prefix = folder + b"/" if folder else b""
        names: list[bytes] = []
        folders: list[bytes] = []
        links: list[bytes] = []
        try:
            with os.scandir(path) as entries:
                while batch := list(itertools.islice(entries, _BATCH)):
                    for entry in batch:
                        name = entry.name
                        if not entry.is_file(follow_symlinks=False):
                            reason = _sort_special(entry, names, folders, links)
                        elif not (reason := reason_against(name)):
                            names.append(name)
                        if reason:
                            self.left_out.add(reason, prefix + name)
                    self.progress(self.num_names + len(names))
        except OSError as error:
            raise unlisted(path, error) from None
        self.num_folders += 1
        if self.nested and not folder and names:
            self.left_out.add(IN_NO_CLASS, min(names), len(names))
            names = []
        names.sort()
        joined = _SEPARATOR.join(names)
        self.num_names += len(names)
        self.num_bytes += len(joined) + (len(prefix) - 1) * len(names) + bool(names)
        if folders or links:
            joined = _SEPARATOR.join(sorted([*names, *(name + b"/" for name in folders + links)]))
        if joined:
            self.entries[folder] = joined
        return [prefix + name for name in folders], [prefix + name for name in links]

    def names(self) -> Names:
        """Paths of all pictures, sorted as bytes; the entries are used up."""
        content = np.empty(self.num_bytes, np.uint8)
        lengths = np.empty(self.num_names, np.int64)
        start = first = 0
        for prefix, run in self._runs():
            joined = prefix + run.replace(_SEPARATOR, prefix)
            content[start : start + len(joined)] = np.frombuffer(joined, np.uint8)
            ends = np.flatnonzero(np.frombuffer(run + _SEPARATOR, np.uint8) == 0)
            lengths[first : first + len(ends)] = np.diff(ends, prepend=-1) - 1 + len(prefix)
            start, first = start + len(joined), first + len(ends)
        return Names.of(content, _ends_of(lengths))

    def _runs(self) -> Iterator[tuple[bytes, bytes]]:
        """Pictures that follow each other in one folder, joined, with its path, in sorted order.

        A folder's name sorts with the "/" behind it, so that whole paths are in order.
        """
        waiting = [(b"", self._take(b""))]  # folders that are being gone through, outermost first
        while waiting:
            prefix, entries = waiting[-1]
            entry = next(entries, None)
            if entry is None:
                waiting.pop()
            elif entry.endswith(b"/"):
                below = prefix + entry
                waiting.append((below, self._take(below[:-1])))
            else:
                yield prefix, entry

    def _take(self, folder: bytes) -> Iterator[bytes]:
        """A folder's subfolders and, joined, the pictures between them, in sorted order.

        Nothing where it is empty or was listed under another path.
        """
        joined = self.entries.pop(folder, b"")
        if b"/" not in joined:
            yield from _pieces(joined)
            return
        for is_folder, names in itertools.groupby(joined.split(_SEPARATOR), _is_folder):
            run = list(names)
            yield from run if is_folder else _pieces(_SEPARATOR.join(run))


def _is_folder(entry: bytes) -> bool:
    return entry.endswith(b"/")


def _pieces(joined: bytes) -> Iterator[bytes]:
    """Joined names in parts of about a MiB, to be handled in little memory; none if empty."""
    start = 0
    while start < len(joined):
        end = joined.find(_SEPARATOR, start + 2**20)
        end = len(joined) if end < 0 else end
        yield joined[start:end]
        start = end + 1


def _sort_special(
    entry: os.DirEntry[bytes], names: list[bytes], folders: list[bytes], links: list[bytes]
) -> str:
    """Append what is no regular file to one of the three lists, or return why it is left out."""
    name, is_link = entry.name, entry.is_symlink()
    if is_hidden(name):
        return HIDDEN_FOLDER if not is_link and entry.is_dir() else HIDDEN
    if not is_link and entry.is_dir():
        folders.append(name)
        return ""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return LINK_TO_NOTHING
        raise
    if stat.S_ISDIR(mode):
        links.append(name)
        return ""
    reason = reason_against(name)
    if not reason and stat.S_ISREG(mode):
        names.append(name)
    return reason or ("" if stat.S_ISREG(mode) else NO_FILE)


def _require_same_class(root: str, folder: bytes, other: bytes) -> None:
    """Raise ValueError if two classes share a folder; links to the root are allowed."""
    classes = [os.fsdecode(name.partition(b"/")[0]) for name in (folder, other)]
    if other and classes[0] != classes[1]:
        raise ValueError(
            f"{root}: {short(os.fsdecode(folder))} and {short(os.fsdecode(other))} are one folder, "
            f"by links: its pictures are of class {short(classes[0])} or {short(classes[1])}, so "
            "remove one of the two"
        )


def _identity(root: str, folder: bytes) -> int:
    """Device and inode as one number, not a tuple.

    Python keeps freed tuples for reuse, and with them the memory of the names around them.
    """
    path = os.path.join(os.fsencode(root), folder)
    try:
        status = os.stat(path)
    except OSError as error:
        raise unlisted(path, error) from None
    return status.st_dev << 64 | status.st_ino


def unlisted(path: bytes, error: OSError) -> ValueError:
    """The error for a folder that cannot be listed."""
    what = os.fsdecode(error.filename or path)
    return ValueError(
        f"{what} cannot be listed: {error.strerror}; without its pictures the data set would "
        "be incomplete: make it readable, or move it away"
    )


def require_one_kind(names: Names, where: str) -> None:
    """ValueError where arrays and pictures are mixed, in a folder, its tar files or a list."""
    arrays = names.ending_with(ARRAY_SUFFIX)
    number = int(arrays.sum())
    if number not in (0, len(names)):
        raise ValueError(
            f"{where} mixes {number} {ARRAY_SUFFIX} array(s), for example "
            f"{short(os.fsdecode(names[int(arrays.argmax())]))}, with {len(names) - number} other "
            "pictures, whose numbers have other ranges: keep them in folders of their own"
        )
