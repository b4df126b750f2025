"""The index beside a tar file: which pictures it holds and where, without reading its headers."""

import contextlib
import json
import os
import zlib
from pathlib import Path

import numpy as np

from data.left_out import LeftOut
from data.listing import Names
from data.members import LABEL_SUFFIX, LONGEST_HEADER, PLACE, RANGE, Members, require_inside
from data.pictures import ARRAY_SUFFIX, IMAGE_SUFFIXES, NO_LABEL
from utils.digest import digest_of
from utils.files import open_regular, read_regular, write_whole
from utils.messages import reason_of

INDEX_SUFFIX = ".index"
_LARGEST = 2**32  # bytes
_SAMPLES = 16  # members that are compared where the times say that the index is right
# What decides which members are pictures. An index that other rules made is not believed; the
# number changes where the code of data/members.py or data/left_out.py does.
_RULES = digest_of("2", *IMAGE_SUFFIXES, ARRAY_SUFFIX, LABEL_SUFFIX)
_END = np.dtype("<i8")
_CHECK = np.dtype([("range", RANGE), ("sum", "<u4")])


class NotBelievedError(Exception):
    """An index is missing, damaged, or of another tar file or version; its words say which."""


def write_index(path: str, members: Members) -> None:
    """Write the index of a tar file beside it, with the tar file's modification time."""
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        checks = np.zeros(len(members.ranges), _CHECK)
        checks["range"] = members.ranges
        checks["sum"] = _sums(descriptor, members.ranges)
    finally:
        os.close(descriptor)
    arrays = (members.places, members.names.ends, members.names.content, checks)
    body = b"".join(array.tobytes() for array in arrays)
    about = {
        "tar": status.st_size,
        "pictures": len(members),
        "members": len(checks),
        "ended": members.ended,
        "left_out": members.left_out.counts,
        "examples": {
            key: name.decode("latin-1") for key, name in members.left_out.examples.items()
        },
    }
    head = json.dumps(about).encode()
    first = f"{_RULES} {digest_of(head, body)}\n".encode()
    index = Path(path + INDEX_SUFFIX)
    write_whole(index, lambda file: file.write(b"".join((first, head, b"\n", body))), flush=False)
    with contextlib.suppress(OSError):  # without it, all headers are compared
        os.utime(index, ns=(status.st_atime_ns, status.st_mtime_ns))


def read_index(path: str) -> Members:
    """Read the index beside a tar file; NotBelievedError where it may not be of this tar file.

    It is believed where it has the tar file's size and modification time, and some headers and
    labels are the same; where the time differs, as after `cp -r`, where all of them are.
    """
    members, size, checks = _parse(path)
    try:
        descriptor = open_regular(path)
        try:
            status = os.fstat(descriptor)
            if status.st_mtime_ns == os.stat(path + INDEX_SUFFIX).st_mtime_ns:
                # An odd step meets labels as well as pictures where they alternate.
                checks = checks[:: len(checks) // _SAMPLES | 1]
            same = status.st_size == size
            same = same and _sums(descriptor, checks["range"]) == checks["sum"].tolist()
        finally:
            os.close(descriptor)
        if same:
            require_inside(path, members, size)
            return members
    except (OSError, ValueError) as error:
        raise NotBelievedError(
            f"its index cannot be compared with it: {reason_of(error)}"
        ) from None
    raise NotBelievedError("its index is of another tar file")


def _sums(descriptor: int, ranges: np.ndarray) -> list[int]:
    """Checksums of parts of a file; ValueError for parts too long to be headers."""
    if len(ranges) and not 0 <= ranges["length"].min() <= ranges["length"].max() <= LONGEST_HEADER:
        raise ValueError("ranges that are no headers")
    return [zlib.crc32(os.pread(descriptor, length, start)) for start, length in ranges.tolist()]


def _parse(path: str) -> tuple[Members, int, np.ndarray]:
    """The content of an index, the size of its tar file, and the checksums of its members."""
    try:
        first, head, body = read_regular(path + INDEX_SUFFIX, _LARGEST).split(b"\n", 2)
        rules, digest = first.decode("ascii").split()
        if rules != _RULES or digest != digest_of(head, body):
            raise NotBelievedError("its index is damaged or of another version")
        about, rest = json.loads(head), memoryview(body)
        number = about["pictures"]
        places, rest = _cut(rest, PLACE, number)
        if number and places["label"].min() < NO_LABEL:
            raise NotBelievedError("its index is damaged or of another version")
        ends, rest = _cut(rest, _END, number + 1)
        content, rest = _cut(rest, np.dtype(np.uint8), int(ends[-1]))
        checks, rest = _cut(rest, _CHECK, about["members"])
    except FileNotFoundError:
        raise NotBelievedError("it has no index") from None
    except (OSError, ValueError, KeyError) as error:
        raise NotBelievedError("its index is damaged or of another version") from error
    examples = {key: name.encode("latin-1") for key, name in about["examples"].items()}
    left_out = LeftOut(about["left_out"], examples)
    names = Names.of(content, ends)
    return Members(places, names, checks["range"], left_out, about["ended"]), about["tar"], checks


def _cut(content: memoryview, dtype: np.dtype, number: int) -> tuple[np.ndarray, memoryview]:
    """The array that a content begins with, and the rest."""
    array = np.frombuffer(content, dtype, number)
    return array, content[array.nbytes :]
