"""Find the pictures that training could not read: of a folder, its tar files, or a CSV list.

python -m tools.scan DATA [--dataset D] [--workers N] [--channels C] [--list FILE]

Ends with status 1 if there are any; --list writes their names to a file.
"""

import argparse
import os
from pathlib import Path

from utils.config.arguments import make_parser, positive_integer, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.scan", __doc__)
    parser.add_argument("data", metavar="DATA", help="a folder, or a list such as train.csv")
    parser.add_argument(
        "--dataset", choices=("imagenet", "shards"), help="pictures of the folder, or of tar files"
    )
    cores = os.cpu_count()
    parser.add_argument(
        "--workers", type=positive_integer, default=cores, metavar="N", help=f"[{cores}]"
    )
    parser.add_argument(
        "--channels", type=positive_integer, default=3, metavar="C", help="of the model [3]"
    )
    parser.add_argument(
        "--max-pixels",
        type=positive_integer,
        default=178_956_970,
        metavar="N",
        help="as DATA.MAX_PIXELS",
    )
    parser.add_argument("--list", type=Path, metavar="FILE", help="write names of broken ones here")
    arguments = parser.parse_args()
    if arguments.list:
        require_writable(arguments.list)
    return arguments


def require_writable(path: Path) -> None:
    """ValueError where a file cannot be written, before the scan takes hours."""
    folder = path.absolute().parent
    if path.is_dir():
        reason = "it is a folder, expected a file"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}: make it first"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        reason = "it may not be written"
    else:
        return
    raise ValueError(f"--list {path} cannot be written: {reason}")


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from data.first_look import first_look
from data.labelled import csv_list
from data.left_out import LeftOut
from data.listing import find_pictures
from data.pictures import Decoder
from data.shards import Shards, tar_files
from data.sources import ImageFolder, PictureSet
from logger import progress_bar
from utils.processes.exit_status import run_program
from utils.processes.signals import follow_parent

_CHUNK = 64  # pictures
_scanned: list[PictureSet] = []  # in a worker, which thus gets the names only once


def main() -> None:
    """Scan, print the unreadable pictures; exit with status 1 if there are any."""
    arguments = read_arguments()
    decode = Decoder(arguments.channels, fast=True, most_pixels=arguments.max_pixels)
    pictures = pictures_of(arguments.data, arguments.dataset, decode)
    if found := getattr(pictures, "found", ""):
        print(found, flush=True)
    look = first_look(pictures)
    for line in (*look.notes, *look.warnings):
        print(line, flush=True)
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
        names = [os.fsencode(pictures.name(index)) + b"\n" for index in sorted(broken)]
        arguments.list.write_bytes(b"".join(names))
    if broken:
        sys.exit(1)


def pictures_of(data: str, dataset: str | None, decode: Decoder) -> PictureSet:
    """What training reads of a folder with DATA.DATASET `dataset`, or of a CSV list.

    ValueError where a folder holds pictures and tar files, and `dataset` does not say which.
    """
    if os.path.isfile(data):
        return csv_list(data, None, decode)
    num_tars = len(tar_files(data, LeftOut())) if os.path.isdir(data) else 0
    if dataset is None and num_tars:
        num_pictures = len(find_pictures(data).names)
        if num_pictures:
            raise ValueError(
                f"{data} holds {num_pictures} pictures and {num_tars} tar file(s): give --dataset "
                "imagenet or --dataset shards, as training gets it in DATA.DATASET"
            )
        dataset = "shards"
    return (Shards if dataset == "shards" else ImageFolder)(data, decode)


def scan(pictures: PictureSet, workers: int) -> Iterator[tuple[int, str]]:
    """Index and reason of each picture that cannot be read, in any order."""
    chunks = [
        range(first, min(first + _CHUNK, len(pictures)))
        for first in range(0, len(pictures), _CHUNK)
    ]
    with ProcessPoolExecutor(workers, initializer=start_worker, initargs=(pictures,)) as pool:
        results = as_completed([pool.submit(read, chunk) for chunk in chunks])
        try:
            for done in progress_bar(results, "scan", rank=0, total=len(chunks)):
                yield from done.result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker of the scan was killed, perhaps because memory was short: give fewer "
                "--workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def start_worker(pictures: PictureSet) -> None:
    """Prepare a worker process."""
    follow_parent()
    _scanned[:] = [pictures]


def read(indices: range) -> list[tuple[int, str]]:
    """Read some pictures; index and reason of those that fail."""
    broken = []
    for index in indices:
        try:
            _scanned[0][index]
        except ValueError as error:
            broken.append((index, str(error)))
    return broken


if __name__ == "__main__":
    run_program(main)
