"""Swin-B with its optimizer through the command lines: what is saved goes on, whatever happens."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from PIL import Image

from tests.full_size.programs import FINETUNE, PRETRAIN, pretrain, run, run_until, start
from tests.support.small_runs import ROOT, equal, run_folder
from utils.checkpoints.reading import read_checkpoint
from utils.files import DamagedError

pytestmark = pytest.mark.full_size

SIZE = 1.05e9  # bytes of a checkpoint at least
NUM_CLASSES, NUM_VAL = 1000, 11
MIB = 2**20


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two epochs of two updates."""
    folder = tmp_path_factory.mktemp("swin_b")
    said = run(*pretrain(folder, "whole", "TRAIN.EPOCHS", 2))
    assert "swin: 89874104 parameters" in said
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def checkpoint(output: Path) -> Path:
    """The checkpoint after the first epoch."""
    path = folder_of(output, "whole") / "ckpt_epoch_0.pth"
    assert path.stat().st_size > SIZE
    return path


def folder_of(output: Path, tag: str, name: str = "simmim_pretrain") -> Path:
    return run_folder(output, tag, name)


def begun(output: Path, checkpoint: Path, tag: str) -> Path:
    """The folder of a run that was stopped after its first epoch."""
    folder = folder_of(output, tag)
    folder.mkdir(parents=True)
    shutil.copy(checkpoint, folder)
    return folder


def test_a_stopped_run_goes_on_bit_for_bit(output: Path, checkpoint: Path) -> None:
    folder = begun(output, checkpoint, "stopped")
    said = run(*pretrain(output, "stopped", "TRAIN.EPOCHS", 2))
    assert f"resumed from {folder}/ckpt_epoch_0.pth: epoch 1, update 2" in said
    assert "Train: [0/2]" not in said
    one, other = (
        torch.load(folder_of(output, tag) / "ckpt_epoch_1.pth", weights_only=True)
        for tag in ("whole", "stopped")
    )
    assert len(one["optimizer"]["state"]) == len(one["model"])
    for key in ("model", "optimizer", "lr_scheduler"):
        assert equal(one[key], other[key])
    assert "nothing is left to train" in run(*pretrain(output, "stopped", "TRAIN.EPOCHS", 2))
    shutil.rmtree(folder)


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def one_pass(path: Path) -> int:
    """The checksum of a whole file, as fast as zlib computes it."""
    found = 0
    with open(path, "rb") as file:
        while block := file.read(4 * MIB):
            found = zlib.crc32(block, found)
    return found


def test_reading_takes_what_torch_and_one_pass_over_the_file_take(checkpoint: Path) -> None:
    ratios = []
    for _ in range(5):
        parts = timed(lambda: torch.load(checkpoint, weights_only=True, map_location="cpu"))
        parts += timed(lambda: one_pass(checkpoint))
        ratios.append(timed(lambda: read_checkpoint(checkpoint)) / parts)
    print(f"reading: {median(ratios):.2f} of torch.load and zlib.crc32 ({sorted(ratios)})")
    assert median(ratios) < 1.2


RESUME = """
import sys, torch
from pathlib import Path
from models import build_pretrain_model
from utils.config import get_config
from utils.device import choose_device
from utils.files import RunFolder
from utils.checkpoints.resume import resume
from utils.training.run import Run, build_state

def status(name):
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(f"{name}:") + 1]) // 1024

cfg = get_config(sys.argv[1], ["DEVICE", "cpu", "DATA.BATCH_SIZE", 4])
run = Run(cfg, choose_device("cpu"), torch.float32, RunFolder(Path(sys.argv[2])))
parts = build_state(run, build_pretrain_model(cfg), 2)
before = status("VmRSS")
resume(run.output, parts, cfg, 2, run.device)
print(before, status("VmHWM"))
"""


def test_a_resume_needs_room_for_the_moments_and_the_file(checkpoint: Path) -> None:
    """And for no second copy of them: what is restored is given up tensor by tensor."""
    command = [sys.executable, "-c", RESUME, str(ROOT / PRETRAIN), str(checkpoint.parent)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, most = map(int, said.split())
    file = checkpoint.stat().st_size / MIB
    moments = 2 / 3 * file
    print(f"a resume takes {most - before} MiB, the file {file:.0f}, its moments {moments:.0f}")
    assert most - before < 1.03 * (file + moments)


@pytest.mark.parametrize("place", [0.001, 0.5, 0.98])
def test_a_flipped_bit_in_a_gigabyte_is_found(checkpoint: Path, place: float) -> None:
    with open(checkpoint, "r+b") as file:
        where = int(place * checkpoint.stat().st_size)
        file.seek(where)
        (byte,) = file.read(1)
        try:
            file.seek(where)
            file.write(bytes([byte ^ 4]))
            file.flush()
            with pytest.raises(DamagedError):
                read_checkpoint(checkpoint)
        finally:
            file.seek(where)
            file.write(bytes([byte]))
    read_checkpoint(checkpoint)


def test_a_damaged_newest_checkpoint_is_set_aside_and_a_full_disk_harms_none(
    output: Path, checkpoint: Path
) -> None:
    """Files may not grow beyond 400 MB, as on a disk that is nearly full."""
    folder = begun(output, checkpoint, "damaged")
    newest = shutil.copy(folder_of(output, "whole") / "ckpt_epoch_1.pth", folder)
    with open(newest, "r+b") as file:
        file.truncate(900_000_000)
    words = pretrain(output, "damaged", "TRAIN.EPOCHS", 2)
    limited = "import resource, runpy, signal, sys; sys.argv = sys.argv[1:]; "
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 10**8,) * 2); "
    limited += "sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    said = run("-c", limited, *words, status=2)
    assert "set aside as ckpt_epoch_1.pth.bad, using the one before" in said
    assert f"error: {folder}/ckpt_epoch_1.pth cannot be written: File too large" in said
    assert {path.name for path in folder.glob("*ckpt*")} == {
        "ckpt_epoch_0.pth",
        "ckpt_epoch_1.pth.bad",
    }
    shutil.rmtree(folder)


def test_a_run_killed_again_and_again_while_gigabytes_are_written_goes_on(
    output: Path, checkpoint: Path
) -> None:
    folder = begun(output, checkpoint, "killed")
    for wait in (0.0, 0.7, 2.0):
        process = start(*pretrain(output, "killed", "TRAIN.EPOCHS", 9, "SAVE_UPDATES", 1))
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Train: " in line:
                break
        time.sleep(wait)
        process.kill()
        process.communicate()
        assert "resumed from" in said
        assert "Train: [0/" not in said
    said = run(*pretrain(output, "killed", "TRAIN.EPOCHS", 2))
    assert "resumed from" in said
    assert not list(folder.glob("*.bad"))
    assert not list(folder.glob(".*.tmp"))
    shutil.rmtree(folder)


def test_swin_b_is_fine_tuned_on_a_thousand_classes_resumed_and_evaluated(
    output: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for stage, number in (("train", NUM_CLASSES), ("val", NUM_VAL)):
        (tmp_path / stage).mkdir()
        with open(tmp_path / f"{stage}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            for index in range(number):
                picture = Image.new("RGB", (40, 30), (index % 256, index // 4, 90))
                picture.save(tmp_path / stage / f"{index}.jpg")
                writer.writerow([f"{stage}/{index}.jpg", f"n{index:04}"])
    words = ["main_finetune.py", "--cfg", FINETUNE, "--device", "cpu", "--batch-size", 4]
    words += ["--data-path", tmp_path, "--output", output, "--tag", "fine"]
    opts = ["--opts", "DATA.DATASET", "csv", "DATA.NUM_WORKERS", 0, "PICTURE_FREQ", 0]
    opts += ["PRINT_FREQ", 1]
    status, said = run_until(
        "Train: [0/100][1/250]", signal.SIGTERM, *words, "--pretrained", checkpoint, *opts
    )
    assert status == 75, said
    assert re.search(r"ckpt_epoch_0\.pth: loaded: \d+; resized: 0; initialized: 2 ", said)
    assert "1000 images of 1000 classes to train on" in said
    folder = folder_of(output, "fine", "simmim_finetune")
    (stopped,) = folder.glob("ckpt_epoch_0_update_*.pth")
    status, said = run_until(
        "Train: [0/100][", signal.SIGTERM, *words, "--pretrained", checkpoint, *opts
    )
    assert status == 75, said
    assert f"resumed from {stopped}" in said
    newest = re.findall(r"goes on from (\S+)\n", said)[-1]
    assert newest != str(stopped)
    said = run(*words, "--eval", "--resume", newest, *opts)
    assert re.search(r"\* Acc@1 \d+\.\d{3} Acc@5 \d+\.\d{3}", said)
    (report,) = folder.glob("eval__*.json")
    assert json.loads(report.read_text())["images"] == NUM_VAL
    shutil.rmtree(folder)


def test_the_reconstruction_tool_draws_a_checkpoint_of_swin_b(
    output: Path, checkpoint: Path, tmp_path: Path
) -> None:
    words = ["-m", "tools.reconstruct", "--cfg", PRETRAIN, "--resume", checkpoint, "--rows", 2]
    words += ["--device", "cpu", "--picture", tmp_path / "x.png"]
    run(*words, "--opts", "DATA.DATASET", "shapes")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 3 * 192
