"""The memory that tools.plan prints, against a real run of Swin-B."""

import subprocess
import sys

import pytest

from tests.full_size.programs import ENVIRONMENT, PRETRAIN, ROOT

pytestmark = pytest.mark.full_size

BATCH = 4
MEASURE = """
import sys
from pathlib import Path
import torch
from utils.memory import keep_freed_memory
keep_freed_memory()
from models import build_pretrain_model
from tools.measuring.needs import count_needs, memory_of
from utils.config import get_config
from utils.files import RunFolder
from utils.training.run import Run, build_state

def status(name):
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(f"{name}:") + 1]) / 1024

batch, cpu = int(sys.argv[2]), torch.device("cpu")
opts = ["DEVICE", "cpu", "DATA.BATCH_SIZE", batch, "TRAIN.PRECISION", "float32"]
cfg = get_config(sys.argv[1], opts)
needs = count_needs(cfg, torch.float32)
planned = (sum(memory_of(needs, 1, False).values()) + needs.kept.of(batch)) / 2**20
before = status("VmRSS")
parts = build_state(Run(cfg, cpu, torch.float32, RunFolder(Path())), build_pretrain_model(cfg), 2)
image, mask = torch.randn(batch, 3, 192, 192), torch.rand(batch, 48, 48) > 0.4
for _ in range(2):
    parts.model(image, mask).backward()
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
print(planned, status("VmHWM") - before)
"""


def test_planned_memory_is_that_of_a_run_within_a_tenth() -> None:
    command = [sys.executable, "-c", MEASURE, str(ROOT / PRETRAIN), str(BATCH)]
    said = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    planned, real = map(float, said.split())
    print(f"planned {planned:.0f} MiB, real {real:.0f}")
    assert real == pytest.approx(planned, rel=0.1)
