"""Files from anybody: each is read, or refused in one line, in bounded time and memory."""

import contextlib
import io
import multiprocessing
import pickle
import pickletools
import resource
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.pictures import Decoder
from data.shards import Shards
from tests.support.fuzz import KINDS, archive_with, fuzz
from utils.checkpoints.reading import read_checkpoint
from utils.config import get_config

NUMBER = 2000
SEED = 2


def work(name: str, results: Any) -> None:
    """In a process of its own, whose memory is limited."""
    counts = fuzz(name, NUMBER, SEED)
    results.put(dict(list(counts.items())[:20]))  # no more than a pipe holds


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_are_read_or_refused_in_one_line(name: str) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(name, results))
    process.start()
    process.join(300)
    assert process.exitcode == 0, "it crashed or hangs"
    counts = results.get()
    print(f"{NUMBER} {name}, seed {SEED}: {counts}")
    assert set(counts) == {"read", "refused"}
    assert sum(counts.values()) == NUMBER
    assert min(counts.values()) > NUMBER // 20  # neither trivial nor hopeless


# What earlier mutations have found.
@pytest.mark.parametrize(
    "text",
    [
        f"TRAIN: {{BASE_LR: {'9' * 400}}}",
        "TRAIN: {BASE_LR: !!timestamp x}",
        f"BASE: {'x' * 3000}",
        "BASE: /dev/zero",
        "BASE: [[a]]",
        "BASE: &a [*a]",
        f"SEED: {'1' * 5000}",
        "DATA: {IMG_SIZE: 2020-99-99}",
        "? [x]\n: y",
        "MODEL: !!python/object/apply:os.system ['touch pwned']",
        "DATA: {DATA_PATH: !!python/name:os.system }",
        "a: " + "[" * 5000,
        "1: 2",
        "x" * 2**21,
    ],
)
def test_a_configuration_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\A[^\n]{10,600}\Z"):
        get_config(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.yaml"]


def test_a_configuration_that_names_itself_a_thousand_times_stays_small(tmp_path: Path) -> None:
    """Each line is ten times the one before: printed, the value would have 10^30 parts."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for index in range(1, 30):
        lines.append(f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]")
    for key in ("BASE", "SEED", "DATA"):
        path = tmp_path / "x.yaml"
        path.write_text("\n".join(lines) + f"\n{key}: *a29\n")
        with pytest.raises(ValueError, match=r"\A[^\n]{10,600}\Z"):
            get_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "SEED: " + "1:" * 10**4 + "1",  # base 60
        "DATA:\n" + "- a\n" * 8000,
        "SEED: [" + "a," * 16000 + "]",
        "SEED: " + "[" * 30000,
        "a: &a {" + ",".join(f"k{i}: 1" for i in range(1000)) + "}\nb:\n" + "  - {<<: *a}\n" * 1500,
        "x: y\n" * 10**5,
    ],
    ids=["base 60", "list", "brackets", "deep brackets", "merged keys", "large"],
)
def test_a_configuration_that_takes_long_to_read_is_refused_soon(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"\A[^\n]{10,600}\Z"):
        get_config(path)
    assert time.process_time() - start < 5


def test_files_that_name_each_other_many_times_are_counted(tmp_path: Path) -> None:
    """16^5 readings otherwise."""
    for index in range(6):
        bases = f"BASE: [{', '.join([f'{index + 1}.yaml'] * 16)}]\n" if index < 5 else ""
        (tmp_path / f"{index}.yaml").write_text(f"{bases}SEED: 1\n")
    with pytest.raises(ValueError, match="with its BASE files it has more than 64"):
        get_config(tmp_path / "0.yaml")


def peak_memory() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pickled(opcodes: bytes) -> bytes:
    return b"\x80\x04" + opcodes + b"."


@pytest.mark.parametrize(
    "content",
    [
        pickled(pickle.BYTEARRAY8 + struct.pack("<Q", 2**33)),
        pickled(pickle.BINBYTES8 + struct.pack("<Q", 2**33)),
        pickled(pickle.EMPTY_DICT + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1)),
        pickled(pickle.FRAME + struct.pack("<Q", 2**62)),
    ],
    ids=["bytearray", "bytes", "memo", "frame"],
)
def test_a_pickle_cannot_claim_memory(tmp_path: Path, content: bytes) -> None:
    torch.save({"x": torch.ones(3)}, path := tmp_path / "x.pth")
    path.write_bytes(archive_with(path.read_bytes(), content))
    before = peak_memory()
    with contextlib.suppress(ValueError):
        read_checkpoint(path)
    assert peak_memory() - before < 2**29


@pytest.mark.parametrize("size", [2**34, 2**62])
def test_an_array_cannot_claim_memory(size: int) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size}, 1, 3), }}".ljust(117)
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + b"\n" + bytes(99)
    before = peak_memory()
    with pytest.raises(ValueError, match="but the file ends before that"):
        Decoder()(content, "x.npy")
    assert peak_memory() - before < 2**27


def test_no_program_is_started_for_a_picture() -> None:
    """For PostScript PIL would start an interpreter."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="it is in no known format"):
        Decoder()(content, "x.jpg")


def test_nothing_is_written_outside_of_an_archives_folder(tmp_path: Path) -> None:
    """Names in archives are never paths here: no member of one is ever written."""
    data = tmp_path / "data"
    data.mkdir()
    picture = io.BytesIO(b"P6 1 1 255\nabc")
    with tarfile.open(data / "x.tar", "w") as tar:
        for name in ("../../evil.ppm", "/evil.ppm"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    with zipfile.ZipFile(data / "x.pth", "w") as archive:
        archive.writestr("../../evil/data.pkl", pickle.dumps({}))
        archive.writestr("../../evil/data/0", b"x")
    shards = Shards(str(data))
    assert len(shards) == 2
    assert shards[0][1] == -1
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(data / "x.pth")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "x.pth", "x.tar"]


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_no_opcode_of_a_pickle_runs_code(tmp_path: Path, opcode: Any) -> None:
    """Each gets on its stack, and as its argument, what would call os.system."""
    witness = tmp_path / "pwned"
    command = f"touch {witness}".encode()
    text = b"\x8c" + bytes([len(command)]) + command  # SHORT_BINUNICODE
    words = b"\x8c\x02os\x8c\x06system"
    code = opcode.code.encode("latin-1")
    argument = b"os\nsystem\n" if opcode.arg and opcode.arg.n < 0 else b"\x00\x00\x00\x00"
    torch.save({"x": torch.ones(3)}, path := tmp_path / "x.pth")
    whole = path.read_bytes()
    for before in (
        words,  # two names: STACK_GLOBAL
        b"(" + words + text,
        b"cos\nsystem\n" + text + b"\x85",  # a function and its arguments: REDUCE, NEWOBJ
        b"(cos\nsystem\n" + text,  # a mark, a class, its arguments: OBJ
        b"(" + text,  # a mark and arguments; the class is the opcode's argument: INST
        b"}" + words + text + b"\x85\x86",  # an object and its state: BUILD
    ):
        for after in (b"", text + b"\x85R"):
            path.write_bytes(archive_with(whole, pickled(before + code + argument + after)))
            with contextlib.suppress(ValueError):
                read_checkpoint(path)
    assert not witness.exists()


def test_no_tag_of_yaml_runs_code(tmp_path: Path) -> None:
    """Every tag that PyYAML's unsafe loader knows, with what would call os.system."""
    loader = yaml.UnsafeLoader
    tags = [tag for tag in (*loader.yaml_constructors, *loader.yaml_multi_constructors) if tag]
    python = [tag for tag in tags if "python" in tag]
    assert len(python) > 10
    path, witness = tmp_path / "x.yaml", tmp_path / "pwned"
    for tag in python:
        for value in (f"['touch {witness}']", f"{{args: ['touch {witness}']}}", "os.system", "''"):
            for name in ("", "os.system"):
                path.write_text(f"TAG: !<{tag}{name}> {value}\n")
                with pytest.raises(ValueError, match="is not valid YAML: could not determine"):
                    get_config(path)
    assert not witness.exists()
