"""What processes tell each other, between real ones."""

import functools
from pathlib import Path

import pytest

from tests.support.pairs import told_by
from utils.processes.group import raise_everywhere


def meet(errors: list[str | None], rank: int, folder: Path) -> object:
    """One process of a group: raise what all raise."""
    raise_everywhere(None)
    own = errors[rank]
    raise_everywhere(None if own is None else ValueError(own))
    return "nothing"


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
    assert told_by(2, tmp_path, functools.partial(meet, errors)) == [expected] * 2


def test_one_process_raises_its_own_error() -> None:
    raise_everywhere(None)
    error = ValueError("no such file")
    with pytest.raises(ValueError, match="no such file") as caught:
        raise_everywhere(error)
    assert caught.value is error
