"""What processes tell each other, between real ones."""

import os
from pathlib import Path

import pytest
import torch

from tests.support.kills import forked, free_port, join
from utils.processes.group import (
    CommonError,
    barrier,
    raise_everywhere,
    start_process_group,
)


def meet(rank: int, port: str, errors: list[str | None], folder: Path) -> None:
    """One process of a group: raise what all raise, and leave it in a file."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(len(errors)), "OMP_NUM_THREADS": "1"}
    start_process_group(torch.device("cpu"), 60)
    raise_everywhere(None)
    own = errors[rank]
    try:
        raise_everywhere(None if own is None else ValueError(own))
    except CommonError as error:
        (folder / str(rank)).write_text(f"{error.rank} {error}")
    barrier()
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([None, "no such\nfile: \u00e9"], "1 no such file: \u00e9"),
        (["one", "another"], "0 one"),
        (["", None], "0 ValueError"),
        (["x" * 999 + "\u00e9" + "y" * 10**6, None], "0 " + "x" * 999 + "\u00e9"),
    ],
    ids=["of the other one", "of both", "without words", "too long"],
)
def test_an_error_of_one_process_is_raised_in_all_of_them(
    tmp_path: Path, errors: list[str | None], expected: str
) -> None:
    port = free_port()
    processes = [
        forked().Process(target=meet, args=(rank, port, errors, tmp_path)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    assert join(processes, 60) == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == [expected] * 2


def test_one_process_raises_its_own_error() -> None:
    raise_everywhere(None)
    error = ValueError("no such file")
    with pytest.raises(ValueError, match="no such file") as caught:
        raise_everywhere(error)
    assert caught.value is error
