"""Reading files that others wrote: regular ones of a limited size only."""

import os
from pathlib import Path

import pytest

from utils.files import read_regular


def test_a_regular_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    os.symlink(path, tmp_path / "link")
    assert read_regular(path, 7) == read_regular(str(tmp_path / "link"), 100) == b"content"
    with pytest.raises(ValueError, match="it has 7 bytes, more than 6"):
        read_regular(path, 6)
    path.write_bytes(b"")
    assert read_regular(path, 0) == b""


def test_what_may_have_no_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match="it is no regular file"):
            read_regular(path, 10)
    with pytest.raises(ValueError, match="more than 10"):
        read_regular("/proc/self/maps", 10)  # of size 0 by its status
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 10)
