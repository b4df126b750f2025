"""Which pictures an uncompressed tar file holds, and where, by reading its headers."""

import io
import os
import posixpath
import tarfile
from dataclasses import dataclass, field

import numpy as np

from data.left_out import (
    HIDDEN,
    HIDDEN_FOLDER,
    LINK_TO_NOTHING,
    NO_FILE,
    LeftOut,
    is_hidden,
    reason_against,
    suffix_reason,
)
from data.listing import Names
from data.pictures import LARGEST_FILE, NO_LABEL
from utils.files import open_regular
from utils.messages import reason_of, short

LABEL_SUFFIX = ".cls"
PLACE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i8")])
RANGE = np.dtype([("start", "<i8"), ("length", "<i8")])
LONGEST_HEADER = 2**20  # bytes, of one member
_LONGEST_LABEL = 20  # bytes
_MOST_HOPS = 40  # from link to link, as Linux allows
_PADDING = 2**20  # bytes behind the end mark; common programs write less than 10,240

REPLACED = "replaced by a later member of the same name"
SPARSE = "sparse file(s)"
OTHER_LINK = "link(s) of other names"
UNUSED_LABEL = f"{LABEL_SUFFIX} without a picture"

Place = tuple[int, int]  # offset and size


@dataclass
class Members:
    """Pictures of a tar file in its order.

    `places` (dtype PLACE) and `names` belong together. `ranges` (dtype RANGE) are where headers and
    labels lie, from which all else follows. `ended`: whether the file has an end mark.
    """

    places: np.ndarray
    names: Names
    ranges: np.ndarray
    left_out: LeftOut = field(default_factory=LeftOut)
    ended: bool = True

    def __len__(self) -> int:
        return len(self.places)


class _Headers(io.BufferedReader):
    """A file of which only headers are read: one that claims to be huge takes no memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a header; ReadError for more than LONGEST_HEADER bytes."""
        if size is None or not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def read_members(path: str) -> Members:
    """Find the pictures of a tar file; ValueError where it is damaged, cut off, or no tar file."""
    try:
        descriptor = open_regular(path)
    except (OSError, ValueError) as error:
        raise _no_tar(path, error) from None
    search = _Search(path, descriptor)
    with _Headers(io.FileIO(descriptor)) as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it holds no file
        except Exception as error:  # broken headers raise exceptions of many types
            raise _no_tar(path, error) from None
        kept: list[tarfile.TarInfo] = vars(tar)["members"]
        while (member := _next(tar, path)) is not None:
            search.add(member)
            kept.clear()  # tarfile would keep 1 KB of each
        members = search.members()
        members.ended = _is_ended(path, descriptor, tar.offset)
    return members


def _next(tar: tarfile.TarFile, path: str) -> tarfile.TarInfo | None:
    """The next member, None at the end."""
    try:
        member = tar.next()
        if member is not None and member.size < 0:
            raise tarfile.ReadError(f"{short(member.name)} has {member.size} bytes")
    except Exception as error:
        raise _no_tar(path, error) from None
    return member


def _no_tar(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as an uncompressed tar file: {reason_of(error)}")


def _is_ended(path: str, descriptor: int, end: int) -> bool:
    """Whether the mark of the end follows the last member, as it should.

    tarfile takes any block that is no header for the end. ValueError where it is damaged, or where
    more follows, as in tar files that were joined to one.
    """
    rest = os.pread(descriptor, _PADDING, end)
    if rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise ValueError(
            f"{path} is damaged: at byte {end} neither a file's header nor the end follows, so "
            "that the pictures after it would be left out: write it again"
        )
    if rest.strip(b"\0"):
        raise ValueError(
            f"{path} goes on after its end, at byte {end}: of tar files that were joined only the "
            "first would be read; put them beside each other"
        )
    return bool(rest)


class _Search:
    """Members of one tar file, added in their order."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        # Pictures by name: their place, or the name that a symbolic link leads to.
        self.found: dict[bytes, Place | bytes] = {}
        self.others: dict[bytes, Place] = {}  # files that links of other names may lead to
        self.labels: dict[bytes, int] = {}  # by the name of the label's file, without suffix
        self.hidden_folders: set[bytes] = set()
        self.left_out = LeftOut()
        self.ranges: list[tuple[int, int]] = []

    def add(self, member: tarfile.TarInfo) -> None:
        """Note a member as picture or label, or count it."""
        header = member.offset_data - member.offset
        path = _inside(member.name)
        stem, suffix = posixpath.splitext(path)
        is_label = suffix.lower() == LABEL_SUFFIX.encode()
        self.ranges.append((member.offset, header + member.size * (is_label and member.isreg())))
        hidden = self._is_hidden(path, member.isdir())
        if member.isdir():
            return
        if is_label and not hidden and (member.isreg() or member.islnk()):
            self._add_label(member, path, stem)
            return
        reason = "" if hidden else reason_against(posixpath.basename(path))
        if hidden or reason:
            if reason:
                self.left_out.add(OTHER_LINK if member.issym() else reason, path)
            if member.isreg() and not member.issparse():
                self.others[path] = member.offset_data, member.size
        else:
            self._add_picture(member, path)

    def _add_label(self, member: tarfile.TarInfo, path: bytes, stem: bytes) -> None:
        label: int | None
        if member.islnk():
            label = self.labels.get(posixpath.splitext(_inside(member.linkname))[0])
        else:
            label = self._read_label(member)
        if stem in self.labels:
            self.left_out.add(REPLACED, path)
        if label is None:
            self.left_out.add(LINK_TO_NOTHING, path)
        else:
            self.labels[stem] = label

    def _add_picture(self, member: tarfile.TarInfo, path: bytes) -> None:
        place: Place | bytes | None = None  # None: it is left out
        if member.issym():
            target = os.fsencode(member.linkname)
            place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        elif member.islnk():
            target = _inside(member.linkname)
            place = self.found.get(target, self.others.get(target))
            if place is None:
                self.left_out.add(LINK_TO_NOTHING, path)
        elif not member.isreg() or member.issparse():
            self.left_out.add(SPARSE if member.isreg() else NO_FILE, path)
        else:
            place = member.offset_data, member.size
        if path in self.found:
            self.left_out.add(REPLACED, path)
            if place is None:
                del self.found[path]
        if place is not None:
            self.found[path] = place

    def _is_hidden(self, path: bytes, is_folder: bool) -> bool:
        """Whether a part of a path is hidden; a hidden folder counts once."""
        parts = path.split(b"/")
        number = next((number for number, part in enumerate(parts, 1) if is_hidden(part)), 0)
        if not number:
            return False
        if number == len(parts) and not is_folder:
            self.left_out.add(HIDDEN, path)
        elif (folder := b"/".join(parts[:number])) not in self.hidden_folders:
            self.hidden_folders.add(folder)
            self.left_out.add(HIDDEN_FOLDER, folder)
        return True

    def _read_label(self, member: tarfile.TarInfo) -> int:
        length = min(member.size, _LONGEST_LABEL + 1)
        word = os.pread(self.descriptor, length, member.offset_data).strip()
        if not word.isdigit() or member.size > LONGEST_HEADER or int(word) > 2**31 - 1:
            name = short(member.name)
            raise ValueError(f"{self.path}: {name} holds {word!r}, expected the index of a class")
        return int(word)

    def members(self) -> Members:
        """The pictures, with labels, and all that is left out."""
        places = self._places()
        chosen = self._samples(places)
        unused = dict(self.labels)
        rows = []
        for path in chosen:
            names = (posixpath.splitext(path)[0], _key(path))
            label = next((name for name in names if name in self.labels), None)
            rows.append((*places[path], NO_LABEL if label is None else self.labels[label]))
            if label is not None:
                unused.pop(label, None)
        for stem in unused:
            self.left_out.add(UNUSED_LABEL, stem + LABEL_SUFFIX.encode())
        ranges = np.array(self.ranges, dtype=RANGE)
        return Members(np.array(rows, dtype=PLACE), Names(chosen), ranges, self.left_out)

    def _places(self) -> dict[bytes, Place]:
        """Places of the pictures, also of those behind symbolic links."""
        places: dict[bytes, Place] = {}
        for path in self.found:
            place: Place | bytes | None = path
            for _ in range(_MOST_HOPS):
                if not isinstance(place, bytes):
                    break
                place = self.found.get(place, self.others.get(place))
            if isinstance(place, tuple):
                places[path] = place
            else:
                self.left_out.add(LINK_TO_NOTHING, path)
        return places

    def _samples(self, places: dict[bytes, Place]) -> list[bytes]:
        """The plain KEY.suffix where a key has one, else all pictures of the key."""
        plain = {_key(path) for path in places if _is_plain(path)}
        samples = []
        for path in places:
            key = _key(path)
            if _is_plain(path) or key not in plain:
                samples.append(path)
            else:
                self.left_out.add(suffix_reason(path[len(key) :]), path)
        return samples


def _inside(name: str) -> bytes:
    """A member's name as a path from the root of the tar file, without "." and "//"."""
    return posixpath.normpath(os.fsencode(name)).lstrip(b"/")


def _key(path: bytes) -> bytes:
    """webdataset's key: the path up to the first dot of the file's name."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.partition(b".")[0])


def _is_plain(path: bytes) -> bool:
    return posixpath.basename(path).count(b".") == 1


def require_inside(path: str, members: Members, size: int) -> None:
    """ValueError where there is no picture, or one lies beyond the file's bytes, or has > 2 GiB."""
    starts, sizes = members.places["offset"], members.places["size"]
    if not len(members):
        raise ValueError(f"{path} holds no picture{members.left_out.words()}")
    if ((starts < 0) | (sizes < 0) | (starts > size) | (sizes > size - starts)).any():
        raise ValueError(f"{path} is cut off: pictures lie beyond its {size} bytes")
    if sizes.max() > LARGEST_FILE:
        raise ValueError(f"{path} holds a picture of more than 2 GiB")
