"""Pack pictures into tar files, which network file systems read faster than many small files.

python -m tools.shard SOURCE OUTPUT     pictures below SOURCE; its class folders become labels
python -m tools.shard --index FOLDER    only write the index of each tar file in FOLDER

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
    parser.add_argument(
        "--size", type=positive_integer, default=1024, metavar="MIB", help="of one tar file [1024]"
    )
    arguments = parser.parse_args()
    if bool(arguments.index) == bool(arguments.output):
        raise ValueError("give SOURCE and OUTPUT, or --index FOLDER")
    return arguments


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import io
import os
import tarfile
import tempfile
from pathlib import Path

from data.labelled import class_folders
from data.listing import find_pictures
from data.pictures import NO_LABEL, read_file
from data.shards import CLASSES_FILE, INDEX_SUFFIX, LABEL_SUFFIX, entries_of, write_index
from logger import progress_bar
from utils.processes.exit_status import run_program

_MIB = 2**20
Sample = tuple[str, int]  # path and label


def main() -> None:
    """Pack or index; print what was written."""
    arguments = read_arguments()
    try:
        if arguments.index:
            print(index_shards(arguments.index))
        else:
            print(pack(arguments.source, Path(arguments.output), arguments.size * _MIB))
    except OSError as error:
        raise ValueError(f"{error.filename or arguments.output}: {error.strerror}") from None


def index_shards(folder: str) -> str:
    """Write an index beside every tar file of a folder."""
    paths = sorted(str(path) for path in Path(folder).glob("*.tar"))
    if not paths:
        raise ValueError(f"{folder} holds no .tar file")
    pictures = 0
    for path in progress_bar(paths, name="indexing", rank=0):
        Path(path + INDEX_SUFFIX).unlink(missing_ok=True)  # else entries_of would read it
        entries = entries_of(path)
        write_index(path, entries)
        pictures += len(entries)
    return f"wrote the index of {pictures} pictures in {len(paths)} tar file(s) of {folder}"


def pack(source: str, output: Path, size: int) -> str:
    """Write all pictures below `source`, in sorted order, to tar files of about `size` bytes.

    `output` appears only after all are written. ValueError where it exists already.
    """
    if output.exists():
        raise ValueError(f"{output} is there already; nothing was written")
    samples, classes = find_samples(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as name:
        folder = Path(name, "shards")
        folder.mkdir()
        number = write_shards(samples, folder, size)
        if classes:
            text = "".join(f"{name}\n" for name in classes)
            (folder / CLASSES_FILE).write_text(text, encoding="utf-8")
        os.rename(folder, output)
    labels = f"{len(classes)} classes" if classes else "no labels"
    return f"wrote {len(samples)} pictures ({labels}) to {number} tar file(s) in {output}"


def find_samples(source: str) -> tuple[list[Sample], list[str]]:
    """Paths with labels, and the classes; without class folders, NO_LABEL and no classes."""
    names = sorted(map(os.fsdecode, find_pictures(source).names))
    if not names:
        raise ValueError(f"{source} holds no picture, at any depth")
    if any(os.path.dirname(name) == "" for name in names):
        return [(os.path.join(source, name), NO_LABEL) for name in names], []
    pictures = class_folders(source)
    paths = [pictures.name(index) for index in range(len(pictures))]
    return list(zip(paths, pictures.labels.tolist(), strict=True)), pictures.classes


def write_shards(samples: list[Sample], folder: Path, size: int) -> int:
    """Write the tar files and their indexes; return the number of tar files."""
    paths: list[str] = []
    tar: tarfile.TarFile | None = None
    for index in progress_bar(range(len(samples)), name="packing", rank=0):
        if tar is None:
            paths.append(str(folder / f"{len(paths):06}.tar"))
            tar = tarfile.open(paths[-1], "w")  # noqa: SIM115 - closed when it is full
        add_sample(tar, index, *samples[index])
        if tar.offset >= size or index == len(samples) - 1:
            tar.close()
            write_index(paths[-1], entries_of(paths[-1]))
            tar = None
    return len(paths)


def add_sample(tar: tarfile.TarFile, index: int, path: str, label: int) -> None:
    """Add a picture, and its label if it has one, under a unique name."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    key = f"{index:08}_{stem.replace('.', '_')}"
    parts = [(suffix.lower(), read_file(path))]
    if label != NO_LABEL:
        parts.append((LABEL_SUFFIX, str(label).encode()))
    for ending, content in parts:
        member = tarfile.TarInfo(key + ending)  # no times or owners: equal input, equal bytes
        member.size, member.mode = len(content), 0o644
        tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    run_program(main)
