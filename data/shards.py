"""Pictures in uncompressed tar files (the layout of webdataset), with random access."""

import functools
import os
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from data.listing import digest_of, require_path
from data.pictures import (
    ARRAY_SUFFIX,
    IMAGE_SUFFIXES,
    LARGEST_FILE,
    NO_LABEL,
    RGB,
    Picture,
    decoder_of,
    read_patiently,
)
from utils.messages import reason_of, short, shown

INDEX_SUFFIX = ".index"
CLASSES_FILE = "classes.txt"
LABEL_SUFFIX = ".cls"
_LONGEST_LABEL = 20  # bytes
_NAME_BYTES = 96  # of each name in an index
_OPEN_FILES = 128
MOST_CLASSES = 10**7  # the limit of MODEL.NUM_CLASSES
INDEX = np.dtype(
    [("offset", "<i8"), ("size", "<i8"), ("label", "<i8"), ("name", f"S{_NAME_BYTES}")]
)


class Shards:
    """All pictures in the tar files of a folder, by file name and then by position in the file.

    An index beside a tar file (`python -m tools.shard` writes it) holds each picture's position;
    without one, the file's headers are read once. Pictures are read in any order: shuffling,
    resuming and randomness are those of a folder of pictures.
    ValueError names a file that is no uncompressed tar file, or is truncated.
    """

    def __init__(self, root: str, channels: int = RGB, decoder: str = "fast") -> None:
        require_path(root)
        self.root, self.decode = root, decoder_of(decoder, channels)
        self.tars = sorted(str(path) for path in Path(root).glob("*.tar"))
        if not self.tars:
            raise ValueError(f"DATA.DATA_PATH {root} holds no .tar file (python -m tools.shard)")
        entries = [entries_of(path) for path in self.tars]
        self.entries = np.concatenate(entries)
        self.tar_of = np.repeat(np.arange(len(entries)), [len(part) for part in entries])
        self.labels = self.entries["label"]
        self.files: OrderedDict[int, int] = OrderedDict()  # tar -> descriptor, oldest use first

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """A picture and its label, NO_LABEL where it has none."""
        entry, tar, name = self.entries[index], int(self.tar_of[index]), self.name(index)

        def read() -> bytes:
            return os.pread(self._open(tar), int(entry["size"]), int(entry["offset"]))

        content = read_patiently(read, name, self.root)
        return self.decode(content, name), int(entry["label"])

    @property
    def digest(self) -> str:
        """Digest of the pictures' places and labels in the tar files."""
        names = "/".join(os.path.basename(path) for path in self.tars)
        return digest_of(names, self.tar_of, self.entries)

    def name(self, index: int) -> str:
        """Path of the tar file and the picture's name in it."""
        name = self.entries[index]["name"].decode(errors="replace")
        return f"{self.tars[int(self.tar_of[index])]}: {name}"

    @functools.cached_property
    def classes(self) -> list[str]:
        """Class names in `classes.txt`, else "0", "1", ...

        ValueError where a picture has no label, and where two classes have the same name: reports,
        lists of labels and other class orders could not distinguish them.
        """
        if (self.labels == NO_LABEL).any():
            index = int(np.argmax(self.labels == NO_LABEL))
            name = self.entries[index]["name"].decode(errors="replace")
            raise ValueError(
                f"{self.root}: picture {short(name)} has no label (no {LABEL_SUFFIX} file)"
            )
        number = int(self.labels.max()) + 1
        if number > MOST_CLASSES:
            raise ValueError(f"{self.root}: a label is {number - 1}, beyond {MOST_CLASSES} classes")
        path = Path(self.root, CLASSES_FILE)
        if not path.exists():
            return [str(label) for label in range(number)]
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"{path} cannot be read as text in UTF-8") from None
        if len(names) < number:
            raise ValueError(f"{path} names {len(names)} classes, but a label is {number - 1}")
        lines: dict[str, int] = {}
        for line, name in enumerate(names, start=1):
            if lines.setdefault(name, line) != line:
                raise ValueError(
                    f"{path}, lines {lines[name]} and {line}: two classes {shown(name)}: "
                    "give each a name of its own (of ImageNet: the WordNet ID)"
                )
        return names

    def _open(self, tar: int) -> int:
        if tar not in self.files:
            if len(self.files) == _OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
            self.files[tar] = os.open(self.tars[tar], os.O_RDONLY)
        self.files.move_to_end(tar)
        return self.files[tar]

    def __getstate__(self) -> dict[str, object]:
        """Omit open files, which are not valid in another process."""
        return self.__dict__ | {"files": OrderedDict()}


def entries_of(path: str) -> np.ndarray:
    """Locate the pictures of a tar file (dtype INDEX), by its index if that fits, else its headers.

    ValueError names a file that cannot be read, is truncated, or holds no picture or one > 2 GiB.
    """
    try:
        entries = _read_index(path)
        if entries is None:
            with tarfile.open(path, "r:") as tar:
                entries = _scan(tar, path)
        size = os.path.getsize(path)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(
            f"{path} cannot be read as an uncompressed tar file: {reason_of(error)}"
        ) from None
    starts, sizes = entries["offset"], entries["size"]
    if ((starts < 0) | (sizes < 0) | (starts > size) | (sizes > size - starts)).any():
        raise ValueError(f"{path} is cut off: pictures lie beyond its {size} bytes")
    if not len(entries) or sizes.max() > LARGEST_FILE:
        what = "a picture of more than 2 GiB" if len(entries) else "no picture"
        raise ValueError(f"{path} holds {what}")
    return entries


def _read_index(path: str) -> np.ndarray | None:
    """Read the index beside a tar file; None where it is missing or of another tar file."""
    try:
        entries = np.load(path + INDEX_SUFFIX, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        raise ValueError(
            f"{path}{INDEX_SUFFIX} cannot be read: write it again (python -m tools.shard --index)"
        ) from None
    if not isinstance(entries, np.ndarray) or entries.dtype != INDEX or entries.ndim != 1:
        return None
    # The last entry holds the size of the tar file.
    fits = len(entries) and entries[-1]["size"] == os.path.getsize(path)
    return entries[:-1] if fits else None


def write_index(path: str, entries: np.ndarray) -> None:
    """Write the index of a tar file beside it."""
    own = np.array([(0, os.path.getsize(path), NO_LABEL, b"")], dtype=INDEX)
    with open(path + INDEX_SUFFIX, "wb") as file:
        np.save(file, np.concatenate([entries, own]))


def _scan(tar: tarfile.TarFile, path: str) -> np.ndarray:
    """List the pictures of a tar file, with labels from the .cls files of the same names."""
    pictures: dict[str, tuple[int, int, bytes]] = {}
    labels: dict[str, int] = {}
    for member in tar:
        if not member.isreg() or member.issparse():
            continue
        folder, base = os.path.split(member.name)
        key = os.path.join(folder, base.partition(".")[0])
        suffix = os.path.splitext(base)[1].lower()
        if suffix in (*IMAGE_SUFFIXES, ARRAY_SUFFIX):
            name = os.fsencode(member.name)[-_NAME_BYTES:]  # the end, with the suffix
            pictures[key] = (member.offset_data, member.size, name)
        elif suffix == LABEL_SUFFIX:
            labels[key] = _read_label(tar, member, path)
    rows = [
        (start, size, labels.get(key, NO_LABEL), name)
        for key, (start, size, name) in pictures.items()
    ]
    return np.array(rows, dtype=INDEX)


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> int:
    file = tar.extractfile(member)
    word = file.read(_LONGEST_LABEL).strip() if file else b""
    if not word.isdigit() or int(word) > np.iinfo(np.int32).max:
        name = short(member.name)
        raise ValueError(f"{path}: {name} holds {word!r}, expected the index of a class")
    return int(word)
