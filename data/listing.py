"""Find the pictures below a folder, and store a million names compactly."""

import errno
import hashlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.pictures import ARRAY_SUFFIX, IMAGE_SUFFIXES
from utils.messages import short

_SUFFIXES = tuple(suffix.encode() for suffix in (*IMAGE_SUFFIXES, ARRAY_SUFFIX))
_NO_DATA = b"lost+found"  # created by the file system at the root of a disk
_LEADS_NOWHERE = (errno.ELOOP, errno.ENOTDIR)  # a link to itself, a link to a path below a file


class Names:
    """Byte strings in one block that worker processes share; single strings would be copied.

    ImageNet's 1.28 million names take 50 MB.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        self.ends = np.concatenate([[0], np.cumsum(lengths)])
        block = io.BytesIO()  # b"".join would need as much memory again, for pointers
        block.writelines(names)
        self.content = block.getvalue()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> bytes:
        """The name at `index`, which may be negative."""
        index = range(len(self))[index]
        return self.content[self.ends[index] : self.ends[index + 1]]

    @property
    def digest(self) -> str:
        """Digest of all names in order."""
        return digest_of(self.ends, self.content)

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


def digest_of(*parts: bytes | str | np.ndarray) -> str:
    """Return 16 hex digits that tell data apart; each part counts with its length."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            part = part.encode(errors="surrogateescape")
        content = part.tobytes() if isinstance(part, np.ndarray) else part
        found.update(b"%d:" % len(content))
        found.update(content)
    return found.hexdigest()[:16]


@dataclass
class Listing:
    """Pictures below `root`: paths relative to it, sorted as bytes, and figures of the search.

    `subfolders` lie directly in `root`; `repeated` are folders that links reach again.
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
    """Raise ValueError if no data path is given."""
    if not root:
        raise ValueError("DATA.DATA_PATH is empty, expected a folder of images (--data-path DIR)")


def find_pictures(root: str, nested: bool = False) -> Listing:
    """Find all pictures at any depth below `root`, also in folders that links lead to.

    `nested`, for class folders, omits pictures directly in `root`.
    A folder with several paths, by links, counts once: under its own if that lies below `root`,
    else under the shortest chain of links, the first in sorted order. Cycles of links thus end.
    ValueError names a folder that cannot be listed or belongs to two classes, or `root` if pictures
    are mixed with arrays, whose values have other ranges.
    """
    require_path(root)
    if not os.path.isdir(root):
        raise ValueError(f"DATA.DATA_PATH {root} is not a folder, expected one that holds images")
    start = time.perf_counter()
    listing = Listing(root)
    seen: dict[int, bytes] = {}
    links = [b""]  # `root` itself, then, round by round, the links found in the round before
    while links:
        further: list[bytes] = []
        for link in sorted(links):
            folders = [link]
            while folders:
                folder = folders.pop()
                identity = _identity(root, folder)
                # Only folders behind a link can repeat. Without links, a file system with
                # duplicate inode numbers thus loses no pictures.
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
        raise _unlisted(path, error) from None
    return status.st_dev << 64 | status.st_ino


def _list(
    root: str, folder: bytes, names: list[bytes], folders: list[bytes], links: list[bytes]
) -> None:
    """Append a folder's pictures, subfolders and links to folders to the three lists."""
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
        f"{what} cannot be listed: {error.strerror}; without its pictures the data set would "
        "be incomplete: make it readable, or move it away"
    )


def _require_one_kind(names: Sequence[bytes], root: str) -> None:
    arrays = [name for name in names if name[-len(ARRAY_SUFFIX) :].lower() == _SUFFIXES[-1]]
    if len(arrays) not in (0, len(names)):
        raise ValueError(
            f"{root} mixes {len(arrays)} {ARRAY_SUFFIX} array(s), for example "
            f"{short(os.fsdecode(min(arrays)))}, with {len(names) - len(arrays)} other pictures, "
            "whose numbers have other ranges: keep them in folders of their own"
        )
