"""Mutated checkpoints, configurations and pictures: each is read, or refused in one line.

python -m tests.support.fuzz [--number 2000] [--seed 0]
"""

import argparse
import copy
import io
import random
import resource
import signal
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tifffile
import torch
import yaml
from PIL import Image
from safetensors.torch import save as save_safetensors

from data.pictures import Decoder
from data.shards import Shards, entries_of
from data.transforms import pretrain_transform
from tests.support.picture_files import make_tar
from tests.support.raw_files import PLANAR, RGB, tiff_bytes
from tests.support.small_runs import ROOT
from tests.support.training_parts import parts_of
from utils.checkpoints.contents import save_checkpoint
from utils.checkpoints.reading import model_weights, read_checkpoint
from utils.checkpoints.resume import resume
from utils.checkpoints.state import Data, TrainState, training_content
from utils.config import get_config
from utils.files import RunFolder

SECONDS = 10  # for one file
MEMORY = 4 * 2**30  # bytes of address space beyond what this process has at first
CPU = torch.device("cpu")
JUNK: list[Any] = [
    *(None, -1, 0, 2**31, 2**70, -(2**70), 1.5, float("nan"), float("inf"), True),
    *("", "x" * 1000, "../../x", b"bytes", [], {}, (), set(), [[]], {"a": {}}, {1: 2}),
    *(torch.zeros(0), torch.full((2, 4), float("nan")), torch.zeros(3, 3), torch.tensor(7)),
]
PLAIN_JUNK = ["[1, 2", "1e400", "[]", "true", "-5", "3.7", "{}"]
YAML_JUNK = [
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "!!binary aGVsbG8=",
    "!!timestamp 2020-13-45",
    "&a [*a]",
    "*nothing",
    "[[[[[[[[[[[[[[[[[[[[[[[[",
    "{{a: b}: c}",
    "1" * 5000,
    "0x" + "f" * 5000,
    "-.inf",
    ".nan",
    "2020-99-99",
    "1:99:99",
    "=",
    "<<: 3",
    "? [x]\n: y",
    "null",
    "'" + "x" * 3000 + "'",
    "\x00",
    "\u2028",
    "/dev/zero",
    "..",
]


def update(parts: TrainState) -> None:
    """What a run does next with a state that was accepted."""
    parts.model(torch.ones(1, 4)).sum().backward()
    parts.optimizer.step()
    parts.position.complete_update()
    parts.position.complete_epoch()
    training_content(parts, get_config())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with something else at one place."""
    if not path:
        return new
    result = copy.copy(value)
    result[path[0]] = replaced(value[path[0]], path[1:], new)
    return result


def mutated(content: bytes, dice: random.Random, number: int) -> bytes:
    """Bytes flipped, cut, repeated, inserted or overwritten at `number` places."""
    found = bytearray(content)
    for _ in range(number):
        if not found:
            break
        place, length = dice.randrange(len(found)), dice.choice((1, 1, 2, 4, 8, 64))
        kind = dice.randrange(6)
        if kind == 0:
            found[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            found[place : place + length] = dice.randbytes(length)
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place:place] = found[place : place + length] * dice.choice((1, 2, 50))
        elif kind == 4:
            found[place : place + 4] = struct.pack("<I", dice.choice((0, 2**31 - 1, 2**32 - 1)))
        else:
            del found[place:]
    return bytes(found)


def archive_with(content: bytes, pickled: bytes) -> bytes:
    """A torch.save archive with another pickle in it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("/data.pkl") else old.read(name))
    return target.getvalue()


class Checkpoints:
    """Training checkpoints: bytes, pickles inside whole archives, values of wrong kinds."""

    def __init__(self, folder: Path) -> None:
        parts = parts_of()
        update(parts)
        parts.data = Data(40, "aa")
        self.state = training_content(parts, get_config())
        self.folder = RunFolder(folder / "none")
        save_checkpoint(folder / "whole.pth", self.state)
        self.whole = (folder / "whole.pth").read_bytes()
        with zipfile.ZipFile(io.BytesIO(self.whole)) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            self.pickled = archive.read(name)
        old = io.BytesIO()
        torch.save(self.state, old, _use_new_zipfile_serialization=False)
        self.old = old.getvalue()
        self.tensors = save_safetensors(dict(parts.model.state_dict()))
        self.places = list(places(self.state))

    def make(self, dice: random.Random) -> tuple[str, bytes]:
        """A file's name and content."""
        kind, number = dice.randrange(10), dice.choice((1, 1, 2, 5))
        if kind < 2:
            return "x.pth", mutated(self.whole, dice, number)
        if kind < 5:
            return "x.pth", archive_with(self.whole, mutated(self.pickled, dice, number))
        if kind < 7:
            return "x.pth", mutated(self.old, dice, number)
        if kind < 8:
            return "x.safetensors", mutated(self.tensors, dice, number)
        state = self.state
        for _ in range(number):
            place = dice.choice(self.places)
            if place in set(places(state)):
                state = replaced(state, place, dice.choice(JUNK))
        file = io.BytesIO()
        torch.save(state, file)
        return "x.pth", file.getvalue()

    def read(self, path: Path) -> None:
        """Go on from it, as a run would, or take its weights."""
        if path.suffix == ".safetensors":
            model_weights(read_checkpoint(path), path)
            return
        parts = parts_of()
        cfg = get_config(None, ["MODEL.RESUME", str(path)])
        resume(self.folder, parts, cfg, 10, CPU, data=Data(40, "bb"))
        update(parts)


class Configurations:
    """The project's configurations: bytes, and lines with values of wrong kinds."""

    def __init__(self, folder: Path) -> None:
        self.texts = [path.read_text() for path in sorted((ROOT / "configs").rglob("*.yaml"))]
        self.texts.append(yaml.safe_dump({"TRAIN": {"EPOCHS": 3}, "DATA": {"IMG_SIZE": [32, 64]}}))

    def make(self, dice: random.Random) -> tuple[str, bytes]:
        """A file's name and content."""
        text = dice.choice(self.texts).replace("BASE:", "#")
        if dice.random() < 0.4:
            return "x.yaml", mutated(text.encode(), dice, dice.choice((1, 2, 5, 20)))
        lines = text.splitlines()
        for _ in range(dice.choice((1, 1, 2, 3))):
            index = dice.randrange(len(lines))
            key, colon, _ = lines[index].partition(":")
            lines[index] = dice.choice(
                (
                    f"{key}{colon} {dice.choice(YAML_JUNK)}",
                    f"{key}{colon} {dice.choice(PLAIN_JUNK)}",
                    f"BASE: {dice.choice(YAML_JUNK)}",
                    lines[index] * 2,
                    f" {lines[index]}",
                )
            )
        return "x.yaml", "\n".join(lines).encode()

    def read(self, path: Path) -> None:
        """Read and check it."""
        get_config(path)


def sample_pictures() -> list[tuple[str, bytes]]:
    """Small pictures of every kind that is read."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    found = []
    for mode, suffix, options in (
        ("RGB", "jpg", {}),
        ("RGB", "jpg", {"progressive": True}),
        ("L", "jpg", {}),
        ("CMYK", "jpg", {}),
        ("RGB", "png", {}),
        ("P", "png", {}),
        ("RGBA", "png", {}),
        ("I;16", "png", {}),
        ("RGB", "webp", {"lossless": True}),
        ("RGB", "bmp", {}),
        ("RGB", "tif", {"compression": "tiff_lzw"}),
        ("L", "tif", {}),
        ("RGB", "ppm", {}),
    ):
        file = io.BytesIO()
        grey = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        picture = grey if mode == "I;16" else Image.fromarray(noise[..., :3]).convert(mode)
        formats = {"jpg": "JPEG", "tif": "TIFF"}
        picture.save(file, formats.get(suffix, suffix.upper()), **options)
        found.append((suffix, file.getvalue()))
    signed = (noise.astype(np.int16) - 128) * 100
    found += [
        ("tif", tiff_bytes(signed, photometric=RGB)),
        ("tif", tiff_bytes(signed, planar=PLANAR, order=">")),
        ("tif", tiff_bytes(*(noise[..., plane] for plane in range(4)))),
        ("tif", tiff_bytes(noise.astype(np.float32))),
    ]
    for compression in ("lzw", "zlib"):
        tifffile.imwrite(
            file := io.BytesIO(), signed, compression=compression, photometric="minisblack"
        )
        found.append(("tif", file.getvalue()))
    for array in (noise[..., :3], noise[..., :3].astype(np.float32)):
        file = io.BytesIO()
        np.save(file, array)
        found.append(("npy", file.getvalue()))
    return found


class Pictures:
    """Pictures of all kinds, and tar files with them and their index."""

    def __init__(self, folder: Path) -> None:
        self.pictures = sample_pictures()
        self.transform = pretrain_transform(16)
        self.tar = make_tar(dict(enumerate(self.pictures[:4])))

    def make(self, dice: random.Random) -> tuple[str, bytes]:
        """A file's name and content."""
        number = dice.choice((1, 1, 2, 5, 20))
        if dice.random() < 0.1:
            return "x.tar", mutated(self.tar, dice, number)
        suffix, content = dice.choice(self.pictures)
        named = suffix if dice.random() < 0.9 else dice.choice(("jpg", "png", "npy"))
        start = dice.choice((0, 0, len(content) // 8))  # most errors lie in headers
        head = content[:start] if start else b""
        return f"x.{named}", head + mutated(
            content[start : 400 if dice.random() < 0.3 else None], dice, number
        )

    def read(self, path: Path) -> None:
        """Decode and crop it, as loaders do."""
        if path.suffix == ".tar":
            entries_of(str(path))
            shards = Shards(str(path.parent))
            for index in range(len(shards)):
                shards[index]
            return
        content, reasons = path.read_bytes(), []
        for decode in (
            lambda: Decoder(fast=True)(content, path.name),
            lambda: Decoder(1)(content, path.name),
            lambda: Decoder(4)(content, path.name),
        ):
            try:
                self.transform(decode())
            except ValueError as error:
                reasons.append(error)
        if len(reasons) == 3:
            raise reasons[0]


KINDS: dict[str, Callable[[Path], Any]] = {
    "checkpoints": Checkpoints,
    "configurations": Configurations,
    "pictures": Pictures,
}


class TooSlowError(BaseException):
    """A file kept its reader busy for too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Inside, nothing takes longer than SECONDS."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Any, path: Path) -> str:
    """How reading ended: "read", "refused", or what must not happen."""
    before = path.read_bytes()
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
        result = "read"
    except ValueError as error:
        text = str(error)
        result = "refused" if "\n" not in text and len(text) < 2000 else f"not a line: {text[:99]}"
    except (Exception, TooSlowError) as error:
        result = f"{type(error).__name__}: {error}"[:200]
    if path.read_bytes() != before or {file.name for file in path.parent.iterdir()} != {path.name}:
        result = "files were changed"
    return result


def fuzz(name: str, number: int, seed: int) -> dict[str, int]:
    """Outcomes of `number` mutated files of a kind, counted; limits this process's memory."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, most))
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        kind = KINDS[name](Path(first))
        for index in range(number):
            file, content = kind.make(random.Random(f"{name} {seed} {index}"))
            path = Path(second, file)
            path.write_bytes(content)
            result = outcome(kind, path)
            if result not in ("read", "refused"):
                result = f"{index}: {result}"
            counts[result] = counts.get(result, 0) + 1
            for left in Path(second).iterdir():
                left.unlink()
    return counts


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    return parser.parse_args()


def main() -> None:
    """All kinds; one line for each."""
    arguments = read_arguments()
    for name in arguments.kind or KINDS:
        print(f"{name}, seed {arguments.seed}: {fuzz(name, arguments.number, arguments.seed)}")


if __name__ == "__main__":
    main()
