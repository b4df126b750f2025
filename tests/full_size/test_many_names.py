"""As many pictures as ImageNet has: how soon they are found and a run begins, in how much memory.

Seconds are those that pass, without the time in which other programs had the cores.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.full_size.many_names import (
    IMAGENET_CLASSES,
    IMAGENET_IMAGES,
    draw_sources,
    make_many_names,
)
from tests.support.process_usage import peak_of, waited
from tests.support.small_runs import ROOT

pytestmark = pytest.mark.full_size

DEMO = ROOT / "configs/demo/simmim_pretrain__swin_tiny__shapes64.yaml"
FINETUNE = "BASE: {demo}\nMODEL: {{NAME: simmim_finetune}}\nTAG: many\n"
LISTED = r"1281167 images in 1001 folder\(s\) \(.* and below\) found in \d+\.\d s"
LONGEST_LISTING, LONGEST_START = 4.5, 18.0  # seconds
MOST_AT_FIRST, MOST_AFTERWARDS = 300, 110  # MiB, for names: while it lists, and then
MOST_OF_A_WORKER = 700  # MiB, most of which are torch and shared


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """train/ of published size, val/ of two pictures in each class."""
    folder = tmp_path_factory.mktemp("imagenet")
    make_many_names(folder / "train", draw_sources(folder / "a"), IMAGENET_CLASSES, IMAGENET_IMAGES)
    make_many_names(folder / "val", draw_sources(folder / "b", 1), IMAGENET_CLASSES, 2000)
    yield folder
    shutil.rmtree(folder)  # 1.3 million names take pytest's room for three runs, too


MEASURE = """
import sys, time
from tests.support.process_usage import memory, peak_of, waited
from data.sources import ImageFolder
from data.labelled import class_folders
find = {"ImageFolder": ImageFolder, "class_folders": class_folders}[sys.argv[1]]
left = memory()
before = peak_of("self")
start = time.perf_counter() - waited()
pictures = find(sys.argv[2])
seconds = time.perf_counter() - start - waited()
peak = peak_of("self") - before
print(len(pictures), seconds, peak, memory() - left)
"""


@pytest.mark.parametrize("kind", ["ImageFolder", "class_folders"])
def test_a_million_names_are_found_within_five_seconds(imagenet: Path, kind: str) -> None:
    """Memory is what comes on top of the libraries'."""
    command = [sys.executable, "-c", MEASURE, kind, str(imagenet / "train")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    number, seconds, peak, left = map(float, result.stdout.split())
    print(f"{kind}: {seconds:.1f} s, {peak:.0f} MiB at most, {left:.0f} MiB afterwards")
    assert number == IMAGENET_IMAGES
    assert seconds < LONGEST_LISTING
    assert peak < MOST_AT_FIRST
    assert left < MOST_AFTERWARDS


def start(program: str, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.parametrize("stage", ["pre-training", "fine-tuning"])
def test_the_first_update_comes_within_twenty_seconds(
    imagenet: Path, tmp_path: Path, stage: str
) -> None:
    """From the command on, with a tiny Swin; the log tells what was found, and how soon."""
    program, cfg, data = "main_simmim.py", DEMO, imagenet / "train"
    if stage == "fine-tuning":
        program, cfg, data = "main_finetune.py", tmp_path / "finetune.yaml", imagenet
        cfg.write_text(FINETUNE.format(demo=DEMO))
    opts = ["DATA.DATASET", "imagenet", "PRINT_FREQ", 1, "DATA.NUM_WORKERS", 2, "DEVICE", "cpu"]
    begin = time.monotonic()
    process = start(
        program, "--cfg", cfg, "--data-path", data, "--output", tmp_path, "--opts", *opts
    )
    said = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if "Train: [0/5][0/40036]" in line:
                break
        seconds = time.monotonic() - begin - waited(process.pid)
        main, workers = peak_of(process.pid), list(map(peak_of, children_of(process.pid)))
    finally:
        process.kill()
        process.wait()
    listed = re.search(LISTED, said)
    assert listed, said
    print(f"{stage}: {listed[0]}; first update after {seconds:.1f} s; MiB: {main}, {workers}")
    assert seconds < LONGEST_START
    assert len(workers) >= 2
    assert main < 2000
    assert max(workers) < MOST_OF_A_WORKER
    if stage == "fine-tuning":
        assert "1281167 images of 1000 classes to train on" in said


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_ends_a_run_that_looks_for_pictures(
    imagenet: Path, tmp_path: Path, name: str, status: int
) -> None:
    data = imagenet / "train"
    opts = ["DATA.DATASET", "imagenet", "DEVICE", "cpu"]
    process = start(
        "main_simmim.py", "--cfg", DEMO, "--data-path", data, "--output", tmp_path, "--opts", *opts
    )
    try:
        deadline = time.monotonic() + 120
        while not lists(process.pid, data):
            assert time.monotonic() < deadline
        os.kill(process.pid, signal.Signals[name])
        said = process.communicate(timeout=10)[0]
    finally:
        process.kill()
    assert process.returncode == status
    assert f"stopped by {name} before training began" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def lists(process: int, folder: Path) -> bool:
    """Whether a process has a folder below this one open."""
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            if os.readlink(entry).startswith(str(folder)):
                return True
        except FileNotFoundError:
            pass
    return False
