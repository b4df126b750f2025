"""What a cluster needs: the arithmetic, by hand, and the report of a recipe."""

from typing import Any

import pytest

from tests.support.small_runs import call
from tools import cluster, plan, reconstruct, scaling, scan, shard
from tools.benchmark import __main__ as benchmark
from tools.measuring import network

ASSUMED = network.Assumed(
    flops=1e12, network=1e9, images_per_core=100, bytes_per_image=1e5, num_images=1000
)


@pytest.mark.parametrize(("sharded", "passes"), [(False, 2), (True, 3)])
def test_each_gpu_passes_on_all_parts_but_its_own(sharded: bool, passes: int) -> None:
    load = network.Load(operations=1, gradient_bytes=800, sharded=sharded)
    assert load.sent(1) == 0
    assert load.sent(8) == passes * 700


def test_an_update_waits_for_what_the_backward_pass_does_not_hide() -> None:
    load = network.Load(operations=3 * 10**9, gradient_bytes=10**9, sharded=False)
    update = network.work_out(load, ASSUMED, gpus=2, batch=100)
    assert update.computing == pytest.approx(0.3)
    assert update.sent == 10**9  # one second, of which 0.2 are hidden
    assert update.waiting == pytest.approx(0.8)
    assert update.needed == pytest.approx(5e9)
    assert update.images_per_second == pytest.approx(200 / 1.1)
    assert network.smallest_batch(load, ASSUMED, gpus=2) == pytest.approx(500)
    assert network.work_out(load, ASSUMED, gpus=2, batch=500).waiting == pytest.approx(0)


def test_one_gpu_waits_for_nobody() -> None:
    load = network.Load(operations=10**9, gradient_bytes=10**9, sharded=True)
    update = network.work_out(load, ASSUMED, gpus=1, batch=10)
    assert (update.sent, update.waiting, update.needed) == (0, 0, 0)
    assert cluster.cells(update, ASSUMED)[6:] == ["1,000", "0.10", "10.0", "1 s"]


def test_the_report_shows_parameters_operations_and_updates_of_a_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml"
    assert call(monkeypatch, cluster, "--cfg", cfg, "--gpus", 16) == 0
    said = capsys.readouterr().out
    assert "89,874,104 parameters, 68.3 GFLOP for an image, SHARDING none, 359 MB" in said
    rows = [line for line in said.splitlines() if line.startswith("| 16 |")]
    assert len(rows) == 2
    assert rows[0] == rows[1]  # 16 x 128 are the published 2,048


FLAGS = ["--tflops", "--utilization", "--network", "--images-per-core", "--image-kb"]
COUNTS = ["--gpus", "--update-images", "--epoch-images"]
NO_NUMBERS = ["0", "-1", "nan", "inf", "-inf", "1e-320", "1e400", "9" * 400, "9" * 5000, "x", ""]


@pytest.mark.parametrize(
    ("program", "flags", "expected"),
    [
        (cluster, FLAGS, "is not a number from 1e-15 to 1e+15"),
        (cluster, COUNTS, "is not a whole number from 1 to 1e+15"),
        (plan, ["--memory"], "is not a number from 1e-15 to 1e+15"),
        (plan, ["--gpus"], "is not a whole number from 1 to 1e+15"),
        (reconstruct, ["--rows"], "is not a whole number from 1 to 1e+15"),
        (scaling, ["--rounds"], "is not a whole number from 1 to 1e+15"),
        (benchmark, ["--rounds", "--updates", "--pictures"], "is not a whole number from 1"),
        (scan, ["--workers", "--channels"], "is not a whole number from 1 to 1e+15"),
        (shard, ["--size"], "is not a whole number from 1 to 1e+15"),
    ],
)
def test_tools_refuse_arguments_that_are_no_positive_numbers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: Any,
    flags: list[str],
    expected: str,
) -> None:
    for flag in flags:
        for text in NO_NUMBERS:
            assert call(monkeypatch, program, f"{flag}={text}") == 2
            said = capsys.readouterr().err.splitlines()[-1]
            assert f"argument {flag}: " in said
            assert expected in said
            assert len(said) < 250


@pytest.mark.parametrize("extreme", [1e-15, 1e15])
def test_extreme_numbers_give_a_report_without_nan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extreme: float
) -> None:
    cfg = "configs/cifar10/simmim_pretrain__vit_tiny__cifar32.yaml"
    numbers = [part for flag in FLAGS for part in (flag, extreme)]
    numbers += [part for flag in COUNTS for part in (flag, 10**15)]
    assert call(monkeypatch, cluster, "--cfg", cfg, *numbers) == 0
    assert call(monkeypatch, plan, "--cfg", cfg, "--gpus", 10**15, "--memory", extreme) == 0
    assert "nan" not in capsys.readouterr().out
