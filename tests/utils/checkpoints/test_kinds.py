"""Files that are mistaken for checkpoints: the error says what each one is."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from utils.checkpoints.reading import read_checkpoint
from utils.files import DamagedError


def saved(value: Any, old_format: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not old_format)
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def zipped(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("ckpt.pth", content)
    return file.getvalue()


def packed(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("ckpt.pth")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def program() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


WEIGHTS = {"model": {"a": torch.ones(50)}}
GOOD = saved(WEIGHTS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"
PICTURES = ("PNG", "JPEG", "GIF", "TIFF", "BMP")
OTHERS = [
    (b"<html>404", "it is a web page"),
    (b"\n <!DOCTYPE html><html>", "it is a web page"),
    (b"\xef\xbb\xbf<html>", "it is a web page"),
    (POINTER, "it is a Git LFS pointer .*git lfs pull"),
    *((picture(kind), "it is a picture") for kind in PICTURES),
    (picture("WEBP"), "it is a RIFF file, such as a WebP picture"),
    (gzip.compress(GOOD), "it is a gzip archive .unpack it first"),
    (bz2.compress(GOOD), "it is a bzip2 archive"),
    (lzma.compress(GOOD), "it is an xz archive"),
    (packed(GOOD), "it is a tar archive"),
    (array(), "it is an array of NumPy"),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "it is an HDF5 file"),
    (save({"a": torch.ones(3)}), r"it is a safetensors file: .* ends with \.safetensors"),
    (zipped(GOOD, zipfile.ZIP_DEFLATED), r"not one that torch\.save wrote .it holds ckpt\.pth"),
    (zipped(GOOD), r"zip archive, but not one that torch\.save wrote .it holds ckpt\.pth"),
    (program(), r"it is a program .torch\.jit\.save.: save its weights"),
    (saved(torch.nn.Linear(2, 2)), r"holds torch\.nn\.\S+Linear, .*torch\.save.model\.state_dict"),
    (saved({"model": torch.nn.Linear(2, 2)}, old_format=True), r"torch\.save.model\.state_dict"),
    (pickle.dumps({"a": 1}, protocol=2), r"it is a pickle, but not one that torch\.save wrote"),
]
DAMAGED = [
    (b"", "it is empty"),
    (GOOD[:-200], "its end is missing"),
    (bytes(1000), "it begins with zeros"),
    (b"404: Not Found", "it is text and begins '404: Not Found'"),
    (b"\x08\x07\x12\x07", r"it does not begin as a file of torch\.save does"),
]


@pytest.mark.parametrize(("content", "message"), OTHERS)
def test_a_file_of_another_kind_is_named_and_does_not_count_as_damaged(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.pth cannot be read: .*{message}") as error:
        read_checkpoint(tmp_path / "x.pth")
    assert not isinstance(error.value, DamagedError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_a_file_of_no_known_kind_counts_as_damaged(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(DamagedError, match=rf"x\.pth is damaged, or no checkpoint: {message}"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_safetensors_file_is_read_whatever_the_length_of_its_header(tmp_path: Path) -> None:
    """The length comes first, and its bytes may be those with which other files begin."""
    lengths = set()
    for letters in range(1, 257, 8):
        file = save({"w" * letters: torch.ones(3)})
        lengths.add(file[0])
        (tmp_path / "x.safetensors").write_bytes(file)
        assert read_checkpoint(tmp_path / "x.safetensors")["w" * letters].sum() == 3
    assert {0x20, 0x80} < lengths


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>404", "it is a web page"),
        (POINTER, "it is a Git LFS pointer"),
        (GOOD, r"it is a file of torch\.save: .* ends with \.pth"),
        (b"", "it is empty"),
        (b"\x08\x07\x12\x07", r"it does not begin as a \.safetensors file does"),
    ],
)
def test_the_content_of_a_file_counts_and_not_its_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "x.safetensors")
