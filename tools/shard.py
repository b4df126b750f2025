"""Pack pictures into tar files, which network file systems read faster than many small files.

python -m tools.shard SOURCE OUTPUT     pictures below SOURCE; its class folders become labels
python -m tools.shard SOURCE OUTPUT --no-labels     the same without labels, whatever the folders
python -m tools.shard --index FOLDER    only write the index of each tar file in FOLDER

Ends with status 1 if pictures were left out because they had become unreadable while it packed.
Train on them with --opts DATA.DATASET shards --data-path OUTPUT. The layout is webdataset's:
NAME.jpg and, with classes, NAME.cls (the index of the class); classes.txt names the classes.
"""

import argparse

from utils.config.arguments import make_parser, positive_integer, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.shard", __doc__)
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="a folder of pictures")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="a folder that is not there")
    parser.add_argument("--index", metavar="FOLDER", help="of tar files")
    parser.add_argument("--no-labels", action="store_true", help="folders are no classes")
    parser.add_argument(
        "--size", type=positive_integer, default=1024, metavar="MIB", help="of one tar file [1024]"
    )
    arguments = parser.parse_args()
    if bool(arguments.index) == bool(arguments.output) or (arguments.index and arguments.no_labels):
        raise ValueError("give SOURCE and OUTPUT, or --index FOLDER")
    return arguments


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import contextlib
import glob
import io
import os
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.labelled import class_folders
from data.left_out import LeftOut
from data.listing import find_pictures
from data.pictures import NO_LABEL, VanishedError, read_file
from data.shards import (
    CLASSES_FILE,
    INDEX_SUFFIX,
    LABEL_SUFFIX,
    classes_text,
    entries_of,
    tar_files,
    write_index,
)
from data.unreadable import most_unreadable
from logger import progress_bar
from utils.messages import short
from utils.processes.exit_status import run_program
from utils.processes.signals import STATUS, PreemptedError

_MIB = 2**20
_MOST_LEFT_OUT = 0.01  # share of the pictures, as DATA.MAX_BROKEN
_PACKING = "shards"  # folder of the tar files until all are written
Sample = tuple[str, int]  # path and label


class Source(NamedTuple):
    """Pictures to pack, their classes (none without labels), and a line about the search."""

    samples: list[Sample]
    classes: list[str]
    found: str


def main() -> None:
    """Pack or index; print what was written."""
    arguments = read_arguments()
    try:
        if arguments.index:
            print(index_shards(arguments.index))
        else:
            output, size = Path(arguments.output), arguments.size * _MIB
            left_out = pack(arguments.source, output, size, labels=not arguments.no_labels)
            if left_out:
                print(f"{len(left_out)} picture(s) left out:", *left_out, sep="\n", file=sys.stderr)
                sys.exit(1)
    except OSError as error:
        raise ValueError(f"{error.filename or arguments.output}: {error.strerror}") from None


def index_shards(folder: str) -> str:
    """Write an index beside every tar file of a folder."""
    paths = tar_files(folder, left_out := LeftOut())
    if not paths:
        raise ValueError(f"{folder} holds no .tar file{left_out.words()}")
    pictures = 0
    for path in progress_bar(paths, name="indexing", rank=0):
        Path(path + INDEX_SUFFIX).unlink(missing_ok=True)  # else entries_of would read it
        entries = entries_of(path)
        write_index(path, entries)
        pictures += len(entries)
    return f"wrote the index of {pictures} pictures in {len(paths)} tar file(s) of {folder}"


def pack(source: str, output: Path, size: int, labels: bool) -> list[str]:
    """Write all pictures below `source`, in sorted order, to tar files of about `size` bytes.

    Print what was written; return why pictures were left out, that became unreadable meanwhile.
    `output` appears only after all are written. ValueError where it exists already.
    """
    require_place(source, output)
    samples, classes, found = find_samples(source, labels)
    text = classes_text(classes)  # fails before hours of packing
    print(found, flush=True)
    require_files([path for path, _ in samples])
    output.parent.mkdir(parents=True, exist_ok=True)
    name_leftovers(output)
    left_out: list[str] = []
    prefix = f".{output.name}-"
    with signals_unwind(), tempfile.TemporaryDirectory(dir=output.parent, prefix=prefix) as name:
        folder = Path(name, _PACKING)
        folder.mkdir()
        number_of_tars = write_shards(samples, folder, size, left_out)
        if classes:
            (folder / CLASSES_FILE).write_bytes(text)
        os.rename(folder, output)
    kind = f"{len(classes)} classes" if classes else "no labels"
    print(
        f"wrote {len(samples) - len(left_out)} pictures ({kind}) to {number_of_tars} tar file(s) "
        f"in {output}"
    )
    return left_out


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Let signals that would kill the program end it like Ctrl-C: what is half made is removed."""

    def stop(number: int, frame: object) -> None:
        """End the program, once."""
        signal.signal(number, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise PreemptedError(f"stopped by {name}: what was packed is removed", STATUS)

    killing = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) == signal.SIG_DFL
    ]
    for number in killing:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in killing:
            signal.signal(number, signal.SIG_DFL)


def require_place(source: str, output: Path) -> None:
    """ValueError where `output` exists or lies in `source`, of which it would be a class."""
    if output.exists() or output.is_symlink():
        raise ValueError(f"{output} is there already; nothing was written")
    if output.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{output} lies in {source}, whose pictures it is to hold: give another")


def name_leftovers(output: Path) -> None:
    """Tell of folders that a killed process left; one that still runs may hold them."""
    for path in sorted(output.parent.glob(f".{glob.escape(output.name)}-????????/{_PACKING}")):
        print(
            f"{path.parent} was left by a process that was killed, unless another one is packing "
            f"to {output}: remove it",
            file=sys.stderr,
        )


def find_samples(source: str, labels: bool) -> Source:
    """The pictures below a folder, with labels where it has class folders and `labels` is true.

    ValueError where pictures lie beside class folders.
    """
    listing = find_pictures(source)
    names = [os.fsdecode(name) for name in listing.names]
    if not names:
        raise ValueError(f"{source} holds no picture, at any depth")
    flat = [name for name in names if "/" not in name]
    if not labels or len(flat) == len(names):
        samples = [(os.path.join(source, name), NO_LABEL) for name in names]
        return Source(samples, [], str(listing))
    if flat:
        raise ValueError(
            f"{source}: {len(flat)} picture(s) such as {short(flat[0])} lie beside its folders and "
            "have no label: move them away, or give --no-labels"
        )
    try:
        pictures = class_folders(source)
    except ValueError as error:
        raise ValueError(f"{error} (or give --no-labels)") from None
    paths = [pictures.path(index) for index in range(len(pictures))]
    samples = list(zip(paths, pictures.labels.tolist(), strict=True))
    return Source(samples, pictures.classes, pictures.found)


def require_files(paths: list[str]) -> None:
    """ValueError where some are no files, or may not be read: before hours of packing."""
    wrong = [path for path in paths if not (os.path.isfile(path) and os.access(path, os.R_OK))]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(paths)} pictures are no files that can be read (a link that "
            f"leads nowhere?), the first is {wrong[0]}: remove them; nothing was written"
        )


def write_shards(samples: list[Sample], folder: Path, size: int, left_out: list[str]) -> int:
    """Write the tar files and their indexes; return the number of tar files.

    Pictures that became unreadable are appended to `left_out`; ValueError where they are many.
    """
    paths: list[str] = []
    tar: tarfile.TarFile | None = None
    for index in progress_bar(range(len(samples)), name="packing", rank=0):
        path, label = samples[index]
        try:
            content = read_file(path)
        except VanishedError:
            raise
        except ValueError as error:
            left_out.append(str(error))
            if len(left_out) > most_unreadable(len(samples), _MOST_LEFT_OUT):
                raise ValueError(f"{len(left_out)} pictures cannot be read: {error}") from None
            continue
        if tar is None:
            paths.append(str(folder / f"{len(paths):06}.tar"))
            tar = tarfile.open(paths[-1], "w")  # noqa: SIM115 - closed when it is full
        add_sample(tar, index, path, label, content)
        if tar.offset >= size:
            close_shard(tar, paths[-1])
            tar = None
    if tar is not None:
        close_shard(tar, paths[-1])
    return len(paths)


def close_shard(tar: tarfile.TarFile, path: str) -> None:
    """Complete a tar file, and write its index."""
    tar.close()
    write_index(path, entries_of(path))


def add_sample(tar: tarfile.TarFile, index: int, path: str, label: int, content: bytes) -> None:
    """Add a picture, and its label if it has one, under a unique name."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    key = f"{index:08}_{stem.replace('.', '_')}"
    parts = [(suffix.lower(), content)]
    if label != NO_LABEL:
        parts.append((LABEL_SUFFIX, str(label).encode()))
    for ending, content in parts:
        member = tarfile.TarInfo(key + ending)  # no times or owners: equal input, equal bytes
        member.size, member.mode = len(content), 0o644
        tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    run_program(main)
