"""Find the pictures of a folder, or of the tar files in it, that training could not read.

python -m tools.scan DATA [--workers N] [--channels C] [--list FILE]

Ends with status 1 where there are any; --list writes their names to a file.
"""

import argparse
import os
from pathlib import Path

from utils.config.arguments import make_parser, positive_integer, read_early


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("-m tools.scan", __doc__)
    parser.add_argument("data", metavar="DATA", help="a folder")
    cores = os.cpu_count()
    parser.add_argument(
        "--workers", type=positive_integer, default=cores, metavar="N", help=f"[{cores}]"
    )
    parser.add_argument(
        "--channels", type=positive_integer, default=3, metavar="C", help="of the model [3]"
    )
    parser.add_argument("--list", type=Path, metavar="FILE", help="write names of broken ones here")
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import functools
import multiprocessing
import sys
import time
from collections.abc import Iterator

from data.shards import Shards
from data.sources import ImageFolder, PictureSet
from logger import progress_bar
from utils.processes.exit_status import run_program
from utils.processes.signals import follow_parent

_CHUNK = 64  # pictures


def main() -> None:
    """Scan, print what was found."""
    arguments = read_arguments()
    is_tar = Path(arguments.data).is_dir() and any(Path(arguments.data).glob("*.tar"))
    pictures = (Shards if is_tar else ImageFolder)(arguments.data, arguments.channels)
    start = time.perf_counter()
    broken = dict(scan(pictures, arguments.workers))
    seconds = time.perf_counter() - start
    for index in sorted(broken):
        print(broken[index])
    print(
        f"{len(pictures)} pictures in {seconds:.1f} s ({len(pictures) / seconds:.0f}/s): "
        f"{len(broken)} cannot be read"
    )
    if arguments.list:
        names = [f"{pictures.name(index)}\n" for index in sorted(broken)]
        arguments.list.write_text("".join(names), encoding="utf-8")
    if broken:
        sys.exit(1)


def scan(pictures: PictureSet, workers: int) -> Iterator[tuple[int, str]]:
    """Index and reason of each picture that cannot be read, in any order."""
    chunks = [
        range(first, min(first + _CHUNK, len(pictures)))
        for first in range(0, len(pictures), _CHUNK)
    ]
    with multiprocessing.Pool(workers, follow_parent) as pool:
        results = pool.imap_unordered(functools.partial(read, pictures), chunks)
        for found in progress_bar(results, "scan", rank=0, total=len(chunks)):
            yield from found


def read(pictures: PictureSet, indices: range) -> list[tuple[int, str]]:
    """Read some pictures; index and reason of those that fail."""
    broken = []
    for index in indices:
        try:
            pictures[index]
        except ValueError as error:
            broken.append((index, str(error)))
    return broken


if __name__ == "__main__":
    run_program(main)
