"""Standard streams write every name, whatever their encoding is."""

import io
import sys

import pytest

from utils.streams import escape_names


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", rb"caf\udce9 \xe9"), ("utf-8", b"caf\\udce9 \xc3\xa9")]
)
def test_letters_that_an_encoding_lacks_are_escapes(
    monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, "strict"))
    escape_names()
    print("caf\udce9 é", end="", flush=True)
    assert sys.stdout.buffer.getvalue() == written  # type: ignore[union-attr]
