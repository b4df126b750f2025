"""Sharded checkpoints, file by file: damage, hostile contents, saves that are killed, moments."""

import itertools
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint.metadata import Metadata

from tests.support.kills import forked, join
from utils.checkpoints.contents import save_checkpoint
from utils.checkpoints.sharded import (
    complete_saves,
    load_tensors,
    restore_tensors,
    save_tensors,
    training_tensors,
)
from utils.checkpoints.sharded_contents import read_contents, verify, write_checksum
from utils.files import DamagedError
from utils.processes.group import gloo_group

pytestmark = pytest.mark.slow  # all start processes

NAME = "ckpt_epoch_0.sharded"
STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}  # of a save, on the disk
OPTIMIZERS: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def trained(name: str = "adamw", scale: float = 1.0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model after an update."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = OPTIMIZERS[name](model.parameters(), lr=0.1, **options)
    (scale * model(torch.ones(1, 4)).sum()).backward()
    optimizer.step()
    return model, optimizer


def save(folder: Path, tensors: dict[str, torch.Tensor], update: int = 0) -> None:
    """As a run of one process does."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)

    def write_rest(path: Path) -> None:
        save_checkpoint(path, {"update": update})

    with ThreadPoolExecutor(1) as executor:
        group = gloo_group()
        save_tensors(folder, tensors, write_rest, group, executor).result()


def save_trained(folder: Path, name: str) -> None:
    save(folder, training_tensors(*trained(name)))
    os._exit(0)


def save_twice(folder: Path, last_step: int) -> None:
    """The second save is killed just before its step of that number, if it has so many."""
    save(folder, {"model.x": torch.full((50,), 1.0)}, 1)
    steps = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        of_save = event != "open" or str(folder.parent) in str(arguments[0])
        if event in STEPS and of_save and next(steps) == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    save(folder, {"model.x": torch.full((50,), 2.0)}, 2)
    os._exit(0)


def statuses_of(work: Any, *arguments: tuple[Any, ...]) -> list[int | None]:
    """Exit statuses of processes that do that, each with its arguments."""
    processes = [forked().Process(target=work, args=args) for args in arguments]
    for process in processes:
        process.start()
    return join(processes, 60)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model trained with AdamW."""
    folder = tmp_path_factory.mktemp("saved") / NAME
    assert statuses_of(save_trained, (folder, "adamw")) == [0]
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """One to break."""
    return Path(shutil.copytree(saved, tmp_path / NAME))


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and moments that a checkpoint gives."""
    model, optimizer = trained(scale=3.0)
    contents = read_contents(folder)
    verify(folder, contents)
    restore_tensors(folder, model, optimizer)
    return training_tensors(model, optimizer)


def assert_as_saved(tensors: dict[str, torch.Tensor]) -> None:
    expected = training_tensors(*trained())
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in tensors.items())


def test_what_is_restored_is_what_was_saved(saved: Path) -> None:
    assert_as_saved(loaded(saved))


def with_flipped_bit(path: Path, content: bytes, place: int) -> None:
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    path.write_bytes(changed)


def outcome(folder: Path) -> str:
    """What loading comes to: the numbers that were saved, or an error of which kind."""
    try:
        tensors = loaded(folder)
    except ValueError as error:
        return "several lines" if "\n" in str(error) else type(error).__name__
    assert_as_saved(tensors)
    return "same"


def outcomes_of_flips(path: Path, number: int) -> Counter[str]:
    """What loading comes to with each of so many bits of one file flipped."""
    content, dice = path.read_bytes(), random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(number):
        with_flipped_bit(path, content, dice.randrange(8 * len(content)))
        counts[outcome(path.parent)] += 1
    return counts


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", ".metadata.sha256"])
def test_every_flipped_bit_is_found_by_a_checksum(copied: Path, name: str) -> None:
    counts = outcomes_of_flips(copied / name, 200)
    if name.endswith(".sha256"):
        assert counts.keys() == {"DamagedError", "same"}  # the sum is followed by the file's name
    else:
        assert counts == {"DamagedError": 200}


def test_without_a_checksum_a_flipped_bit_gives_an_error_or_the_same_numbers(copied: Path) -> None:
    """Older checkpoints have none: what the table says must then fit together."""
    (copied / ".metadata.sha256").unlink()
    assert outcome(copied) == "same"
    counts = outcomes_of_flips(copied / ".metadata", 400)
    assert counts.keys() <= {"DamagedError", "ValueError", "same"}
    assert counts["DamagedError"] > 100


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "rest.pth"])
def test_a_missing_file_counts_as_damage(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(DamagedError, match=f"is incomplete: its {name} is missing"):
        read_contents(copied)


def make_unreadable(path: Path) -> None:
    """Reading /proc/self/mem at its beginning is an input/output error."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def load(folder: Path, contents: Metadata) -> None:
    load_tensors(folder, contents, training_tensors(*trained()))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (".metadata", lambda folder, contents: read_contents(folder)),
        ("__0_0.distcp.sha256", verify),
        ("__0_0.distcp", load),
    ],
)
def test_a_disk_that_cannot_be_read_does_not_count_as_damage(
    copied: Path, name: str, read: Any
) -> None:
    contents = read_contents(copied)
    make_unreadable(copied / name)
    with pytest.raises(ValueError, match=r"cannot be read: .*nput/output error") as caught:
        read(copied, contents)
    assert not isinstance(caught.value, DamagedError)


def read_in_two(rank: int, folders: list[Path], folder: Path) -> None:
    """One of two processes, each with its own view of a checkpoint."""
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        read_contents(folders[rank])
    except ValueError as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)


@pytest.mark.parametrize(
    ("breaks", "expected"),
    [
        ((None, make_unreadable), "CommonError: checkpoint .* cannot be read: Input/output error"),
        ((make_unreadable, Path.unlink), "DamagedError: .* is incomplete: its .metadata is"),
    ],
)
def test_all_processes_end_with_the_same_error(
    saved: Path, tmp_path: Path, breaks: tuple[Any, Any], expected: str
) -> None:
    folders = [Path(shutil.copytree(saved, tmp_path / str(rank) / NAME)) for rank in range(2)]
    for folder, break_ in zip(folders, breaks, strict=True):
        if break_ is not None:
            break_(folder / ".metadata")
    arguments = [(rank, folders, tmp_path) for rank in range(2)]
    assert statuses_of(read_in_two, *arguments) == [0, 0]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert re.match(expected, said[0])


def test_at_every_step_of_a_save_one_whole_checkpoint_of_that_name_is_found(tmp_path: Path) -> None:
    """Killed at any of them: the one before until the new one is whole, then the new one."""
    seen = []
    for step in itertools.count(1):
        folder = tmp_path / str(step) / NAME
        folder.parent.mkdir()
        (status,) = statuses_of(save_twice, (folder, step))
        complete_saves(folder.parent)
        assert [path.name for path in folder.parent.iterdir()] == [NAME]
        contents = read_contents(folder)
        verify(folder, contents)
        tensors = {"model.x": torch.zeros(50)}
        load_tensors(folder, contents, tensors)
        (value,) = tensors["model.x"].unique().tolist()
        assert torch.load(folder / "rest.pth", weights_only=True) == {"update": value}
        seen.append(value)
        shutil.rmtree(folder.parent)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert seen == sorted(seen)
    assert seen.count(1.0) > 5
    assert seen.count(2.0) > 3


def save_with_little_room(folder: Path) -> None:
    """No file may have more than 2 KB, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        save(folder, training_tensors(*trained()))
    except ValueError as error:
        folder.with_name("said.txt").write_text(str(error))
    os._exit(0)


def test_a_piece_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    assert statuses_of(save_with_little_room, (tmp_path / NAME,)) == [0]
    said = (tmp_path / "said.txt").read_text()
    assert re.fullmatch(r"\S+ckpt_epoch_0\.sharded cannot be written: .*File too large", said)
    assert not (tmp_path / NAME).exists()


def refusal(folder: Path, name: str = "adamw") -> str:
    """Why a checkpoint does not go on with that optimizer: not because it is damaged."""
    model, optimizer = trained(name)
    before = {key: value.clone() for key, value in training_tensors(model, optimizer).items()}
    with pytest.raises(ValueError, match="checkpoint") as caught:
        restore_tensors(folder, model, optimizer)
    assert not isinstance(caught.value, DamagedError)
    after = training_tensors(model, optimizer)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    return str(caught.value)


def test_moments_of_another_optimizer_are_named_and_change_nothing(
    saved: Path, tmp_path: Path
) -> None:
    adamw, sgd = "'exp_avg', 'exp_avg_sq', 'step'", "'momentum_buffer'"
    assert f"holds the moments [{adamw}], SGD keeps [{sgd}]" in refusal(saved, "sgd")
    assert statuses_of(save_trained, (tmp_path / NAME, "sgd")) == [0]
    assert f"holds the moments [{sgd}], AdamW keeps [{adamw}]" in refusal(tmp_path / NAME)


def changed(folder: Path, change: Any) -> None:
    """Rewrite the table of contents, as if it had been saved so."""
    path = folder / ".metadata"
    contents = pickle.loads(path.read_bytes())
    change(contents.state_dict_metadata, contents.storage_data)
    path.write_bytes(pickle.dumps(contents))
    (folder / ".metadata.sha256").unlink()


def renamed(entries: dict[Any, Any], pieces: dict[Any, Any], old: str, new: str) -> None:
    entries[new] = entries.pop(old)
    for index in [index for index in pieces if index.fqn == old]:
        moved = type(index)(new, index.offset, index.index)
        pieces[moved] = pieces.pop(index)


def test_moments_of_another_shape_type_or_parameter_are_refused(copied: Path) -> None:
    whole = (copied / ".metadata").read_bytes()
    moment = "optimizer.0.weight.exp_avg"

    def of_float16(entries: Any, pieces: Any) -> None:
        entries[moment].properties.dtype = torch.float16

    def turned(entries: Any, pieces: Any) -> None:
        entries[moment].size = entries[moment].chunks[0].__dict__["sizes"] = torch.Size([3, 2])

    def of_another(entries: Any, pieces: Any) -> None:
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            renamed(entries, pieces, f"optimizer.0.bias.{kind}", f"optimizer.9.bias.{kind}")

    def without_one(entries: Any, pieces: Any) -> None:
        del entries[moment]

    for change, message in (
        (of_float16, f"{moment} is torch.float16, expected torch.float32"),
        (turned, f"{moment} has shape (3, 2), the model (3, 4)"),
        (of_another, "optimizer.9.bias.exp_avg is not in the model"),
        (without_one, "holds the moments ['exp_avg_sq', 'step'], AdamW keeps"),
    ):
        (copied / ".metadata.sha256").touch()
        (copied / ".metadata").write_bytes(whole)
        changed(copied, change)
        assert message in refusal(copied)


def without_part(entries: Any, pieces: Any) -> None:
    entries["model.0.weight"].chunks.clear()


def elsewhere(entries: Any, pieces: Any) -> None:
    next(iter(pieces.values())).relative_path = "../x.distcp"


def overlapping(entries: Any, pieces: Any) -> None:
    list(pieces.values())[3].offset -= 1


def unnamed(entries: Any, pieces: Any) -> None:
    renamed({"model.0.weight": 0}, pieces, "model.0.weight", "model.0.weighs")


def moved(entries: Any, pieces: Any) -> None:
    object.__setattr__(entries["model.0.weight"].chunks[0], "offsets", torch.Size([1, 0]))


def huge(entries: Any, pieces: Any) -> None:
    entry = entries["model.0.bias"]
    entry.size = torch.Size([10**15])
    object.__setattr__(entry.chunks[0], "sizes", entry.size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (huge, "its tensors claim to be larger than its pieces"),
        (without_part, "a part of 'model.0.weight' is missing"),
        (moved, "a part of 'model.0.weight' is missing"),
        (unnamed, "a part of 'model.0.weight' is missing"),
        (elsewhere, r"'../x.distcp' is no name of a piece"),
        (overlapping, "what lies in __0_0.distcp is not one after another"),
    ],
)
def test_contents_that_do_not_fit_together_count_as_damage(
    copied: Path, change: Any, message: str
) -> None:
    changed(copied, change)
    with pytest.raises(DamagedError, match=f"has no usable .metadata: {message}"):
        read_contents(copied)


def pickled(opcodes: bytes) -> bytes:
    return b"\x80\x04" + opcodes + b"."


def text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


NESTED = b"K\x01\x85" + b"2\x86" * 64  # tuples of the same tuple twice: 2^64 parts
TABLE = b"ctorch\nMetadata\n)\x81}("  # an object; its state, a dict, is open


@pytest.mark.parametrize(
    "content",
    [
        pickled(b"}" + NESTED + b"Ns"),
        pickled(b"}(" + NESTED + b"Nu"),
        pickled(b"\x8f(" + NESTED + b"\x90"),
        pickled(b"(" + NESTED + b"\x91"),
        pickled(b"(" + NESTED + b"Nd"),
        pickled(TABLE + text("state_dict_metadata") + NESTED + text("storage_data") + b"}ub"),
        pickled(TABLE + text("state_dict_metadata") + b"}" + text("storage_data") + NESTED + b"ub"),
        pickled(
            TABLE + text("state_dict_metadata") + b"}" + text("x") + b"ctorch\nX\n)\x81}("
            b""
            + text("chunks")
            + b"]"
            + text("size")
            + NESTED
            + text("properties")
            + b"ctorch\nP\n"
            b")\x81ctorch\nfloat32\n\x85b" + b"ubs" + text("storage_data") + b"}ub"
        ),
        pickled(pickle.BYTEARRAY8 + struct.pack("<Q", 2**33)),
        pickled(pickle.BINBYTES8 + struct.pack("<Q", 2**33)),
        pickled(pickle.EMPTY_DICT + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1)),
        pickled(pickle.FRAME + struct.pack("<Q", 2**62)),
        pickled(
            pickle.MARK + b"K\x01" * 100_000 + pickle.LIST + b"q\x00"  # a list of 100,000 numbers
            b"ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 50_000  # copied 50,000 times
        ),
        pickled(b"cbuiltins\nprint\n)R"),
        pickled(b"ctorch.os\nsystem\n" + text("touch pwned") + b"\x85R"),
        pickled(b"(ios\nsystem\n"),
        pickled(b"}}b"),
    ],
    ids=[
        *("key", "keys", "set", "frozenset", "dict", "entries", "pieces", "size", "bytearray"),
        *("bytes", "memo", "frame", "copies", "print", "system", "inst", "state"),
    ],
)
def test_a_hostile_table_of_contents_is_refused_in_bounded_time_and_memory(
    copied: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    (copied / ".metadata").write_bytes(content)
    (copied / ".metadata.sha256").unlink()
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(DamagedError, match=r"\A[^\n]{10,600}\Z"):
        read_contents(copied)
    assert time.monotonic() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
    assert not Path("pwned").exists()


def test_contents_that_are_whole_but_not_understood_do_not_count_as_damage(copied: Path) -> None:
    """Another version of torch may write what this project does not know."""
    (copied / ".metadata").write_bytes(pickled(b"N"))
    write_checksum(copied / ".metadata")
    with pytest.raises(ValueError, match=r"has no usable \.metadata") as caught:
        read_contents(copied)
    assert not isinstance(caught.value, DamagedError)


def test_parts_that_are_repeated_are_refused(copied: Path) -> None:
    """A list of parts that all tensors share is read once for each of them."""

    def shared(entries: Any, pieces: Any) -> None:
        entry = entries["model.0.weight"]
        entry.chunks = entry.chunks * 5000
        entries |= {f"model.{index}": entry for index in range(5000)}

    changed(copied, shared)
    begun = time.monotonic()
    with pytest.raises(DamagedError, match="repeats the same parts again and again"):
        read_contents(copied)
    assert time.monotonic() - begun < 10
