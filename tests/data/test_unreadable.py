"""Pictures that cannot be read: replaced, counted, listed; found beforehand by the scan."""

import errno
import os
import re
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_finetune
from data.build import build_eval_dataset, build_pretrain_dataset
from data.datasets import collate
from data.pictures import VanishedError, read_file, read_patiently, without_pauses
from data.sources import ImageFolder
from data.unreadable import ReadablePictures, most_unreadable
from tests.support.pairs import run_processes
from tests.support.picture_files import make_tar
from tests.support.small_runs import (
    call,
    metrics_of,
    pictures_in,
    run_folder,
    run_here,
    write_config,
    write_finetune_config,
)
from tools import scan
from utils.config import get_config

BROKEN = {
    "03.jpg": "truncated",
    "04.png": "it is empty",
    "05.jpg": "in no known format",
    "06.png": "more than DATA.MAX_PIXELS",
    "07.jpg": "in no known format",
    "08.npx.png": "in no known format",
}
LARGE = 60_000  # a side that no picture has


def png_header(side: int) -> bytes:
    """A picture that says how large it is, and holds nothing."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 pictures, of which six cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(40):
        pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.{'jpg' if index % 2 else 'png'}")
    content = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(content[: len(content) // 2])
    (folder / "04.png").write_bytes(b"")
    (folder / "05.jpg").write_bytes(b"no picture" * 100)
    (folder / "06.png").write_bytes(png_header(LARGE))
    (folder / "07.jpg").write_bytes(b"\0")
    (folder / "08.png").unlink()
    (folder / "08.npx.png").write_bytes(np.zeros((4, 4, 3), dtype=np.uint8).tobytes())
    return folder


def test_a_run_names_each_broken_picture_once_counts_it_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    opts = pictures_in(pictures, "DATA.NUM_WORKERS", 2, "DATA.MAX_BROKEN", 0.2)
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 0
    log = (run_folder(tmp_path) / "log_rank0.txt").read_text()
    for name, reason in BROKEN.items():
        line = f"WARNING another picture takes the place of {pictures / name}, which cannot be read"
        (said,) = re.findall(rf"{re.escape(line)}: (.*)\n", log)
        assert reason in said
    lines = metrics_of(tmp_path)
    assert lines[-1]["broken_pictures"] == len(BROKEN)
    assert [line["broken_pictures"] for line in lines] == sorted(
        line["broken_pictures"] for line in lines
    )


@pytest.mark.slow
def test_what_replaces_a_broken_picture_does_not_depend_on_workers_or_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    cfg = write_config(tmp_path)
    opts = pictures_in(pictures, "DATA.MAX_BROKEN", 0.2, "MODEL.DROP_PATH_RATE", 0.0)
    opts += ["TRAIN.PRECISION", "float32", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    alone, workers, pair = (tmp_path / name for name in ("alone", "workers", "pair"))
    assert run_here(monkeypatch, cfg, "--output", alone, "--batch-size", 8, *opts) == 0
    more = ["--output", workers, "--batch-size", 8, *opts, "DATA.NUM_WORKERS", 2]
    assert run_here(monkeypatch, cfg, *more) == 0
    statuses, said = run_processes(2, cfg, "--output", pair, *opts)
    assert statuses == [0, 0], said
    losses = [[line["loss"] for line in metrics_of(folder)] for folder in (alone, workers, pair)]
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert metrics_of(pair)[-1]["broken_pictures"] == len(BROKEN)  # of both processes together


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_with_too_many_broken_pictures_stops_and_lists_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Path,
    workers: int,
) -> None:
    opts = pictures_in(pictures, "DATA.MAX_BROKEN", 0.05, "DATA.NUM_WORKERS", workers)
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 2
    error = capsys.readouterr().err
    found = re.fullmatch(
        r"error: (\d+) of 40 pictures cannot be read, more than the 3 that DATA\.MAX_BROKEN = "
        r"0\.05 allows: \S+, .* \(all are in (\S+); python -m tools\.scan finds them before\w+\)\n",
        error,
    )
    assert found
    lines = [line.split("\t") for line in Path(found[2]).read_text().splitlines()]
    assert len(lines) == int(found[1]) > 3
    for name, reason in lines:
        assert BROKEN[Path(name).name] in reason


def test_broken_pictures_of_any_name_are_named_so_that_they_are_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Path,
) -> None:
    """The bytes of a name need not be UTF-8: lists have the bytes, people see escapes."""
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9")))
    pictures.rename(folder)
    for name in BROKEN:
        (folder / name).rename(folder / os.fsdecode(os.fsencode(f"{name[:-4]}_") + b"\xe9.jpg"))
    cfg = write_config(tmp_path)
    assert run_here(monkeypatch, cfg, "--output", tmp_path, *pictures_in(folder)) == 2
    captured = capsys.readouterr()
    assert re.search(r"takes the place of \S+/caf\\udce9/\S+_\\udce9\.jpg", captured.out)
    assert re.search(r"allows: \S+/caf\\udce9/\S+_\\udce9\.jpg", captured.err)
    assert captured.err.count("\n") == 1
    log = (run_folder(tmp_path) / "log_rank0.txt").read_text()
    assert "another picture takes the place of" in log
    lines = (run_folder(tmp_path) / "broken_pictures.txt").read_bytes().splitlines()
    assert all(Path(os.fsdecode(line.split(b"\t")[0])).exists() for line in lines)
    assert len(lines) > 3
    again = run_folder(tmp_path) / "config.yaml"
    keys = ["--output", tmp_path / "two", "--opts", "DATA.MAX_BROKEN", 0.2, "TRAIN.EPOCHS", 1]
    assert run_here(monkeypatch, again, *keys, "TRAIN.WARMUP_EPOCHS", 0) == 0


def test_what_replaces_a_broken_picture_follows_from_seed_epoch_and_index(pictures: Path) -> None:
    readable = ReadablePictures(ImageFolder(str(pictures)), seed=4)
    bad = [index for index in range(40) if Path(readable.name(index)).name in BROKEN]
    assert len(bad) == len(BROKEN)

    def taken(seed: int, epoch: int) -> list[bytes]:
        readable.seed = seed
        return [np.asarray(readable.read(epoch, index)[0]).tobytes() for index in bad]

    assert taken(4, 0) == taken(4, 0)
    assert len(Counter(taken(4, 0) + taken(4, 1) + taken(5, 0))) > 10
    assert readable.unreadable.nonzero().flatten().tolist() == bad


def test_a_folder_without_any_good_picture_ends_the_run(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.png").write_bytes(b"broken")
    keys = ["DATA.DATA_PATH", str(tmp_path), "DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 8]
    dataset = build_pretrain_dataset(get_config(None, keys), patch_size=4)
    with pytest.raises(ValueError, match=r"in no known format .*; nor could those"):
        dataset[0, 3]


@pytest.mark.parametrize("packed", [False, True])
def test_the_scan_finds_broken_pictures_before_a_run_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Path,
    packed: bool,
) -> None:
    (pictures / "07.jpg").unlink()
    broken = {name: BROKEN[name] for name in BROKEN if name != "07.jpg"}
    if packed:
        contents = [
            (path.suffix.removeprefix("."), path.read_bytes())
            for path in sorted(pictures.iterdir())
        ]
        shutil.rmtree(pictures)
        pictures.mkdir()
        (pictures / "x.tar").write_bytes(make_tar(dict(enumerate(contents))))
    listed = tmp_path / "list"
    assert call(monkeypatch, scan, pictures, "--workers", 2, "--list", listed) == 1
    said = capsys.readouterr().out
    for reason in broken.values():
        assert reason in said
    assert re.search(r"\n39 pictures in [\d.]+ s \(\d+/s\): 5 cannot be read\n\Z", said)
    assert len(listed.read_text().splitlines()) == 5
    if not packed:
        for name in broken:
            (pictures / name).unlink()
        assert call(monkeypatch, scan, pictures) == 0
        assert "34 pictures" in capsys.readouterr().out


def test_a_folder_that_is_missing_for_a_moment_is_read_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "mount" / "x.png"

    def write_later() -> None:
        time.sleep(0.8)
        path.parent.mkdir()
        path.write_bytes(b"content")

    thread = threading.Thread(target=write_later)
    thread.start()
    assert read_file(str(path)) == b"content"
    thread.join()


def test_a_missing_file_or_one_that_may_not_be_read_costs_no_pauses(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    begin = time.perf_counter()
    for name in ("x.png", "loop", "x" * 300, "."):
        with pytest.raises(ValueError, match="cannot be read as a picture: "):
            read_file(str(tmp_path / name))
    assert time.perf_counter() - begin < 0.3


def failing_read(tries: list[int], number: int) -> bytes:
    """Fail like a file server without an answer; keep count."""
    tries.append(number)
    raise OSError(number, os.strerror(number))


@pytest.mark.slow
def test_an_error_of_the_storage_is_tried_again_after_pauses_until_it_is_known(
    tmp_path: Path,
) -> None:
    for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        tries: list[int] = []
        with without_pauses(number != errno.EIO), pytest.raises(ValueError, match="cannot be read"):
            read_patiently(lambda: failing_read(tries, number), "x.png", str(tmp_path))  # noqa: B023
        assert len(tries) == (4 if number == errno.EIO else 1)


def test_a_flat_folder_that_is_empty_all_at_once_ends_a_run_within_a_second(
    pictures: Path,
) -> None:
    readable = ReadablePictures(ImageFolder(str(pictures)), seed=0)
    for path in pictures.iterdir():
        path.unlink()
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="No such file or directory; nor could those"):
        readable.read(0, 3)
    assert time.perf_counter() - begin < 1


def test_a_picture_that_is_there_again_is_read_again(pictures: Path) -> None:
    """What a sample is follows from the files: a resumed run would read it, too."""
    readable = ReadablePictures(ImageFolder(str(pictures)), seed=0)
    path = Path(readable.name(0))
    whole = np.asarray(readable.read(0, 0)[0])
    content = path.read_bytes()
    path.unlink()
    assert not np.array_equal(np.asarray(readable.read(0, 0)[0]), whole)
    assert readable.unreadable[0]
    path.write_bytes(content)
    assert np.array_equal(np.asarray(readable.read(0, 0)[0]), whole)


def test_small_sets_may_hold_a_few_broken_pictures_and_no_set_only_such() -> None:
    allowed = {number: most_unreadable(number, 0.01) for number in (1, 7, 8, 16, 24, 300, 10**6)}
    assert allowed == {1: 0, 7: 0, 8: 1, 16: 2, 24: 3, 300: 3, 10**6: 10**4}
    assert most_unreadable(100, 0.29) == 29
    assert [most_unreadable(number, 0.0) for number in (1, 100)] == [0, 0]
    assert [most_unreadable(number, 1.0) for number in (1, 100)] == [0, 99]


@pytest.mark.slow
def test_a_folder_that_vanishes_ends_a_run_after_some_attempts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Path,
) -> None:
    with pytest.raises(VanishedError, match="has vanished while its pictures were read"):
        read_file(str(tmp_path / "gone" / "x.png"))

    def vanish() -> None:
        while not (run_folder(tmp_path) / "metrics.jsonl").exists():
            time.sleep(0.01)
        pictures.rename(tmp_path / "moved")

    thread = threading.Thread(target=vanish)
    thread.start()
    opts = pictures_in(
        pictures, "DATA.MAX_BROKEN", 0.2, "TRAIN.EPOCHS", 1000, "DATA.NUM_WORKERS", 1
    )
    assert run_here(monkeypatch, write_config(tmp_path), "--output", tmp_path, *opts) == 2
    thread.join()
    assert re.fullmatch(
        rf"error: {pictures} has vanished while its pictures were read \(4 attempts in 3\.5 s\): "
        rf"{pictures}/\S+: No such file or directory\n",
        capsys.readouterr().err,
    )


def draw_classes(root: Path, number: int = 8) -> Path:
    """A folder with pictures of two classes to train on and to validate."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


@pytest.mark.slow
def test_validation_pictures_that_cannot_be_read_count_as_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw_classes(tmp_path / "data")
    for index in range(2):
        (data / "val" / "a" / f"{index}.png").write_bytes(b"broken")
    cfg = write_finetune_config(tmp_path)
    opts = pictures_in(data, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    run = ["--output", tmp_path, *opts]
    assert run_here(monkeypatch, cfg, *run, program=main_finetune) == 0
    line = "2 picture(s) could not be read and count as wrong (python -m tools.scan says why): "
    assert f"WARNING: {line}{data}/val/a/0.png, {data}/val/a/1.png\n" in capsys.readouterr().out
    best = run_folder(tmp_path, name="finetune") / "best.pth"
    arguments = ["--eval", "--resume", best, *run]
    assert run_here(monkeypatch, cfg, *arguments, program=main_finetune) == 0
    said = capsys.readouterr().out
    assert line in said
    assert float(re.findall(r"Acc@1 (\S+)", said)[0]) <= 87.5
    report = (run_folder(tmp_path, name="finetune") / "eval__best__tiny.json").read_text()
    assert '"unreadable": 2' in report


@pytest.mark.slow
def test_a_validation_that_cannot_be_read_gives_no_accuracy_and_loses_no_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw_classes(tmp_path / "data")
    whole = (data / "val" / "a" / "0.png").read_bytes()
    for index in range(8):
        (data / "val" / "a" / f"{index}.png").write_bytes(b"broken")
    cfg, folder = write_finetune_config(tmp_path), run_folder(tmp_path, name="finetune")
    arguments = ["--output", tmp_path, *pictures_in(data)]
    refused = re.compile(
        r"error: 8 of 16 pictures cannot be read, more than the 2 that DATA\.MAX_BROKEN = 0\.01 "
        r"allows, so there is no accuracy: \S+/val/a/0\.png, .* \.\.\. \(python -m tools\.scan .*\n"
    )
    assert run_here(monkeypatch, cfg, *arguments, program=main_finetune) == 2
    captured = capsys.readouterr()
    assert refused.fullmatch(captured.err)
    assert "the epoch is trained and saved: the same command repeats its" in captured.out
    assert not list(folder.glob("best*"))
    assert not any("val_loss" in line for line in metrics_of(tmp_path, name="finetune"))
    (saved,) = folder.glob("ckpt_*.pth")
    evaluating = ["--eval", "--resume", saved, *arguments]
    assert run_here(monkeypatch, cfg, *evaluating, program=main_finetune) == 2
    assert refused.fullmatch(capsys.readouterr().err)
    assert not list(folder.glob("eval*"))
    for index in range(8):
        (data / "val" / "a" / f"{index}.png").write_bytes(whole)
    assert run_here(monkeypatch, cfg, *arguments, program=main_finetune) == 0
    lines = metrics_of(tmp_path, name="finetune")
    assert [line["update"] for line in lines if "loss" in line] == list(range(8))
    assert [line["epoch"] for line in lines if "val_loss" in line] == [0, 1]


def test_an_unreadable_array_among_arrays_of_three_channels_counts_as_wrong(
    tmp_path: Path,
) -> None:
    for index, name in enumerate(("a", "b")):
        (tmp_path / "val" / name).mkdir(parents=True)
        np.save(tmp_path / "val" / name / "0.npy", np.full((8, 8, 3), index + 0.5, np.float32))
    (tmp_path / "val" / "a" / "1.npy").write_bytes(b"broken")
    opts = ["DATA.DATA_PATH", str(tmp_path), "DATA.IMG_SIZE", 32, "DATA.NUM_WORKERS", 0]
    dataset = build_eval_dataset(get_config(None, opts), ["a", "b"])
    images, labels = collate([dataset[0, index] for index in range(3)])
    assert (images.dtype, labels.tolist()) == (torch.float32, [0, -1, 1])
    assert [round(float(image.max()), 4) for image in images] == [0.5, 0, 1.5]
