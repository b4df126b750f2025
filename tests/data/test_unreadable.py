"""Pictures that cannot be read: replaced, counted, listed; found beforehand by the scan."""

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
from data.build import build_pretrain_dataset
from data.pictures import VanishedError, read_file
from data.sources import ImageFolder
from data.unreadable import ReadablePictures
from tests.support.picture_files import make_tar
from tests.support.small_runs import (
    call,
    metrics_of,
    pictures_in,
    run_folder,
    run_here,
    run_processes,
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
    for name in BROKEN:
        assert (
            log.count(f"WARNING another picture takes the place of {pictures / name}, which") == 1
        )
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
    assert run_processes(2, cfg, "--output", pair, *opts).returncode == 0
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
        r"error: (\d+) of 40 pictures cannot be read, more than DATA\.MAX_BROKEN = 0\.05 of them: "
        r"\S+, .* \(all are in (\S+); python -m tools\.scan finds them beforehand\)\n",
        error,
    )
    assert found
    names = Path(found[2]).read_text().splitlines()
    assert len(names) == int(found[1]) > 2
    assert {Path(name).name for name in names} <= set(BROKEN)


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
    with pytest.raises(ValueError, match="in no known format; nor could 15 others"):
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


def test_a_file_that_is_missing_for_a_moment_is_read_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "x.png"

    def write_later() -> None:
        time.sleep(0.8)
        path.write_bytes(b"content")

    thread = threading.Thread(target=write_later)
    thread.start()
    assert read_file(str(path)) == b"content"
    thread.join()


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
        shutil.rmtree(pictures)

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


@pytest.mark.slow
def test_validation_pictures_that_cannot_be_read_count_as_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(8):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{index}.png")
    for index in range(8):
        (tmp_path / "data" / "val" / "a" / f"{index}.png").write_bytes(b"broken")
    cfg = write_finetune_config(tmp_path)
    opts = pictures_in(tmp_path / "data", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    run = ["--output", tmp_path, *opts]
    assert run_here(monkeypatch, cfg, *run, program=main_finetune) == 0
    assert "WARNING: 8 picture(s) could not be read and count as wrong" in capsys.readouterr().out
    best = run_folder(tmp_path, name="finetune") / "best.pth"
    arguments = ["--eval", "--resume", best, *run]
    assert run_here(monkeypatch, cfg, *arguments, program=main_finetune) == 0
    said = capsys.readouterr().out
    assert "8 picture(s) could not be read and count as wrong" in said
    assert float(re.findall(r"Acc@1 (\S+)", said)[0]) <= 50
    report = (run_folder(tmp_path, name="finetune") / "eval__best__tiny.json").read_text()
    assert '"unreadable": 8' in report
    state = torch.load(best, weights_only=True)
    assert state["best"]["acc1"] <= 50
