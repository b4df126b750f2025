"""Which pictures lie below a folder, and how a million names are kept."""

import errno
import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.pictures import ARRAY_SUFFIX, IMAGE_SUFFIXES
from utils.messages import short

_SUFFIXES = tuple(suffix.encode() for suffix in (*IMAGE_SUFFIXES, ARRAY_SUFFIX))
_NO_DATA = b"lost+found"  # of the file system, at the top of a disk
_LEADS_NOWHERE = (errno.ELOOP, errno.ENOTDIR)  # a link to itself, a link to what is below a file


class Names:
    """Byte strings in one block, which worker processes share: a million strings would be copied.

    ImageNet's 1.28 million names take 50 MB.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        self.ends = np.concatenate([[0], np.cumsum(lengths)])
        block = io.BytesIO()  # joining would take as much memory again, for pointers
        block.writelines(names)
        self.content = block.getvalue()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> bytes:
        """The name at an index, as in a list."""
        index = range(len(self))[index]
        return self.content[self.ends[index] : self.ends[index + 1]]

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


@dataclass
class Listing:
    """Pictures below `root`: their paths relative to it, sorted as bytes, and how they were found.

    `subfolders` are those in `root` itself, `repeated` those that links lead to once more.
    """

    root: str
    names: list[bytes] = field(default_factory=list)
    subfolders: list[bytes] = field(default_factory=list)
    repeated: list[bytes] = field(default_factory=list)
    num_folders: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        text = (
            f"{len(self.names)} images in {self.num_folders} folder(s) ({self.root} and below) "
            f"found in {self.seconds:.1f} s (names: {sum(map(len, self.names)) / 1e6:.1f} MB)"
        )
        if self.repeated:
            first = os.fsdecode(min(self.repeated))
            text += f"; {len(self.repeated)} folder(s) that links reach again count once: {first}"
        return text


def require_path(root: str) -> None:
    """ValueError where no data path is given."""
    if not root:
        raise ValueError("DATA.DATA_PATH is empty, expected a folder of images (--data-path DIR)")


def find_pictures(root: str, nested: bool = False) -> Listing:
    """All pictures at any depth below `root`, also in folders that links lead to.

    With `nested`, for folders of classes, those in `root` itself are left out.
    A folder that has several names, by links, counts once: under its own name if it lies below
    `root`, else under the first of the shortest chain of links. So a link to a folder above ends.
    ValueError names a folder that cannot be listed, one that two classes have, and where pictures
    and arrays, whose numbers have other ranges, are mixed.
    """
    require_path(root)
    if not os.path.isdir(root):
        raise ValueError(f"DATA.DATA_PATH {root} is not a folder, expected one that holds images")
    start = time.perf_counter()
    listing = Listing(root)
    seen: dict[int, bytes] = {}
    links = [b""]  # the folder itself, then, in turn, what links lead to from what is known
    while links:
        further: list[bytes] = []
        for link in sorted(links):
            folders = [link]
            while folders:
                folder = folders.pop()
                identity = _identity(root, folder)
                # Only behind a link can a folder be a known one: file systems whose numbers are
                # not unique lose nothing.
                if link and identity in seen:
                    listing.repeated.append(folder)
                    if nested:
                        _require_same_class(root, folder, seen[identity])
                    continue
                seen[identity] = folder
                listing.num_folders += 1
                names = [] if nested and not folder else listing.names
                _list(root, folder, names, folders, further)
                if not folder:
                    listing.subfolders = [*folders, *further]
        links = further
    _require_one_kind(listing.names, root)
    listing.names.sort()
    listing.seconds = time.perf_counter() - start
    return listing


def _require_same_class(root: str, folder: bytes, other: bytes) -> None:
    """ValueError where two classes have one folder; links may lead up to the root."""
    classes = [os.fsdecode(name.partition(b"/")[0]) for name in (folder, other)]
    if other and classes[0] != classes[1]:
        raise ValueError(
            f"{root}: {short(os.fsdecode(folder))} and {short(os.fsdecode(other))} are one folder, "
            f"by links: its pictures are of class {short(classes[0])} or {short(classes[1])}, so "
            "remove one of the two"
        )


def _identity(root: str, folder: bytes) -> int:
    """Device and inode as one number.

    Python keeps freed tuples for later, and with them the memory of the names around them.
    """
    path = os.path.join(os.fsencode(root), folder)
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unlisted(path, error) from None
    return status.st_dev << 64 | status.st_ino


def _list(
    root: str, folder: bytes, names: list[bytes], folders: list[bytes], links: list[bytes]
) -> None:
    """Add what a folder holds: names of pictures, of folders, and of links to folders."""
    path = os.path.join(os.fsencode(root), folder)
    prefix = folder + b"/" if folder else b""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                is_link = entry.is_symlink()
                if name == _NO_DATA:
                    continue
                if _leads_to_folder(entry) if is_link else entry.is_dir():
                    (links if is_link else folders).append(prefix + name)
                elif name.lower().endswith(_SUFFIXES):
                    names.append(prefix + name)
    except OSError as error:
        raise _unlisted(path, error) from None


def _leads_to_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return False
        raise


def _unlisted(path: bytes, error: OSError) -> ValueError:
    what = os.fsdecode(error.filename or path)
    return ValueError(
        f"{what} cannot be listed: {error.strerror}; without its pictures the data set would be "
        "another one: make it readable, or move it away"
    )


def _require_one_kind(names: Sequence[bytes], root: str) -> None:
    arrays = [name for name in names if name[-len(ARRAY_SUFFIX) :].lower() == _SUFFIXES[-1]]
    if len(arrays) not in (0, len(names)):
        raise ValueError(
            f"{root} mixes {len(arrays)} {ARRAY_SUFFIX} array(s), for example "
            f"{short(os.fsdecode(min(arrays)))}, with {len(names) - len(arrays)} other pictures, "
            "whose numbers have other ranges: keep them in folders of their own"
        )
