"""Whole runs in processes of their own: resumed bit for bit, sharded, and their exit statuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pairs import run_anew
from tests.support.small_encoders import OURS
from tests.support.small_runs import checkpoint_of, equal, metrics_of, run_folder, write_config

pytestmark = pytest.mark.gpu

DETERMINISTIC = ["TRAIN.DETERMINISTIC", True, "TRAIN.PRECISION", "bfloat16"]
SHARDINGS = ("none", "full")


@pytest.fixture(params=[1, 2])
def number(request: pytest.FixtureRequest, device: torch.device) -> int:
    """One process, and two where each has a GPU of its own."""
    if device.type == "cuda" and torch.cuda.device_count() < request.param:
        pytest.skip(f"{request.param} GPUs are needed")
    return int(request.param)


def train(
    number: int, device: torch.device, cfg: Path, tag: str, *opts: Any
) -> tuple[list[int], str]:
    """Exit statuses of a run's processes, and what all of them said."""
    flags = ["--device", device.type, "--output", cfg.parent, "--tag", tag, "--opts", *opts]
    return run_anew(number, "main_simmim.py", "--cfg", cfg, *flags)


@pytest.mark.parametrize("kind", OURS)
def test_a_deterministic_run_is_repeated_and_resumed_bit_for_bit(
    kind: str, tmp_path: Path, device: torch.device
) -> None:
    cfg = write_config(tmp_path, kind)
    for tag in ("one", "other"):
        statuses, said = train(1, device, cfg, tag, *DETERMINISTIC)
        assert statuses == [0], said[-2000:]
    run_folder(tmp_path, "resumed").mkdir(parents=True)
    shutil.copy(run_folder(tmp_path, "one") / "ckpt_epoch_0.pth", run_folder(tmp_path, "resumed"))
    statuses, said = train(1, device, cfg, "resumed", *DETERMINISTIC)
    assert statuses == [0], said[-2000:]
    assert "resumed from" in said
    ends = [checkpoint_of(tmp_path, 1, tag) for tag in ("one", "other", "resumed")]
    for part in ("model", "optimizer", "lr_scheduler"):
        for end in ends[1:]:
            assert equal(end[part], ends[0][part]), part


def test_processes_of_a_run_end_well_and_agree_sharded_or_not(
    number: int, tmp_path: Path, device: torch.device
) -> None:
    cfg = write_config(tmp_path, "swinv2")
    opts = ["TRAIN.PRECISION", "float32", "MODEL.DROP_PATH_RATE", 0.0]
    for sharding in SHARDINGS:
        statuses, said = train(number, device, cfg, sharding, *opts, "TRAIN.SHARDING", sharding)
        assert statuses == [0] * number, said[-2000:]
    one, other = (metrics_of(tmp_path, sharding) for sharding in SHARDINGS)
    for found, expected in zip(one, other, strict=True):
        for name in ("loss", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATA.NUM_SHAPES", 3], "holds 3 images, fewer than one update needs"),
        (["TRAIN.BASE_LR", 1e12, "TRAIN.MAX_SKIPPED", 1], "training has diverged"),
    ],
    ids=["before the first update", "in an update"],
)
def test_an_error_ends_all_processes_with_one_line_and_status_2(
    number: int, tmp_path: Path, device: torch.device, sharding: str, opts: list[Any], message: str
) -> None:
    cfg = write_config(tmp_path, "swin")
    statuses, said = train(number, device, cfg, "wrong", "TRAIN.SHARDING", sharding, *opts)
    assert statuses == [2] * number, said[-2000:]
    assert message in said
    assert "Traceback" not in said
