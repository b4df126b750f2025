"""One process of a machine makes something for all of them, however long that takes."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.pairs import SHORTEST, told_by
from utils.processes import sharing
from utils.processes.sharing import make_once_per_machine


def made_by(folder: Path, seconds: float = 0.0, error: str = "") -> tuple[np.ndarray, list[str]]:
    """Leave a file for each call."""
    (folder / f"made_{os.environ['RANK']}").touch()
    time.sleep(seconds)
    if error:
        raise ValueError(error)
    return np.arange(10**6), [os.environ["RANK"]]


def share_twice(rank: int, folder: Path) -> object:
    first = make_once_per_machine("one", lambda: made_by(folder))
    second = make_once_per_machine("two", lambda: made_by(folder))
    numbers, words = first
    shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd" in line]
    own = numbers.base is None or numbers.flags.writeable
    return int(numbers.sum() + second[0].sum()), words, len(shared), own


@pytest.mark.slow
def test_processes_of_a_machine_map_what_one_of_them_made(tmp_path: Path) -> None:
    told = told_by(3, tmp_path, share_twice)
    assert told == [f"({999999 * 10**6}, ['0'], 2, False)"] * 3
    assert [path.name for path in tmp_path.glob("made_*")] == ["made_0"]


def share_elsewhere(rank: int, folder: Path) -> object:
    if rank == 2:
        sharing._place = lambda: "another machine"
    return make_once_per_machine("one", lambda: made_by(folder))[1]


@pytest.mark.slow
def test_each_machine_makes_its_own(tmp_path: Path) -> None:
    assert told_by(3, tmp_path, share_elsewhere) == ["['0']", "['0']", "['2']"]


def share_closed(rank: int, folder: Path) -> object:
    sharing._offer = lambda made: ("[1, 0, []]" if rank == 0 else "", -1)
    return make_once_per_machine("one", lambda: made_by(folder))[1]


@pytest.mark.slow
def test_what_cannot_be_opened_is_made_again(tmp_path: Path) -> None:
    """Process 1 has no such descriptor, or belongs to another user."""
    sharing_before = sharing._offer
    try:
        assert told_by(2, tmp_path, share_closed) == ["['0']", "['1']"]
    finally:
        sharing._offer = sharing_before


def share_without_memory(rank: int, folder: Path) -> object:
    del os.memfd_create
    return make_once_per_machine("one", lambda: made_by(folder))[1]


def share_beyond_a_limit(rank: int, folder: Path) -> object:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
    return make_once_per_machine("one", lambda: made_by(folder))[1]


@pytest.mark.slow
@pytest.mark.parametrize("act", [share_without_memory, share_beyond_a_limit])
def test_what_cannot_be_offered_is_made_by_each(
    tmp_path: Path, act: Callable[[int, Path], object]
) -> None:
    """The Python of some packagers knows no files of memory."""
    assert told_by(2, tmp_path, act) == ["['0']", "['1']"]


def share_slowly(rank: int, folder: Path) -> object:
    if rank == 1:
        sharing._place = lambda: "another machine"
    seconds = SHORTEST + 12 if rank == 1 else 0
    return make_once_per_machine("one", lambda: made_by(folder, seconds))[1]


@pytest.mark.slow
def test_waiting_longer_than_a_collective_may_ends_nothing(tmp_path: Path) -> None:
    assert told_by(2, tmp_path, share_slowly) == ["['0']", "['1']"]


def share_an_error(rank: int, folder: Path) -> object:
    if rank:
        sharing._place = lambda: "another machine"
    return make_once_per_machine("x", lambda: made_by(folder, error="no folder" * rank))[1]


@pytest.mark.slow
def test_an_error_of_one_machine_is_raised_everywhere(tmp_path: Path) -> None:
    assert told_by(2, tmp_path, share_an_error) == ["1 no folder"] * 2


def test_a_single_process_only_makes() -> None:
    made = object()
    assert make_once_per_machine("one", lambda: made) is made
