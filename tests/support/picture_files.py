"""Pictures in class folders and in tar files, as data sets hold them."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def jpeg(side: int = 8) -> bytes:
    Image.new("RGB", (side, side)).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


def write_classes(folder: Path, number: int = 3) -> Path:
    """`number` pictures in each of two class folders."""
    random = np.random.default_rng(0)
    for name in ("n01", "n02"):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}.{index}.JPEG", quality=95)
    return folder


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_tar(pictures: dict[int, tuple[str, bytes]]) -> bytes:
    """A tar file of pictures with labels."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for index, (suffix, content) in pictures.items():
            for name, part in ((f"{index}.{suffix}", content), (f"{index}.cls", b"3")):
                member = tarfile.TarInfo(name)
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    return file.getvalue()
