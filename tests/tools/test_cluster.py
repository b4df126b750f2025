"""What a cluster needs: the arithmetic, by hand, and the report of a recipe."""

import pytest

from tests.small_runs import call
from tools import cluster

ASSUMED = cluster.Assumed(
    flops=1e12, network=1e9, images_per_core=100, bytes_per_image=1e5, num_images=1000
)


@pytest.mark.parametrize(("sharded", "passes"), [(False, 2), (True, 3)])
def test_each_gpu_passes_on_all_parts_but_its_own(sharded: bool, passes: int) -> None:
    load = cluster.Load(operations=1, gradient_bytes=800, sharded=sharded)
    assert load.sent(1) == 0
    assert load.sent(8) == passes * 700


def test_an_update_waits_for_what_the_backward_pass_does_not_hide() -> None:
    load = cluster.Load(operations=3 * 10**9, gradient_bytes=10**9, sharded=False)
    update = cluster.work_out(load, ASSUMED, gpus=2, batch=100)
    assert update.computing == pytest.approx(0.3)
    assert update.sent == 10**9  # one second, of which 0.2 are hidden
    assert update.waiting == pytest.approx(0.8)
    assert update.needed == pytest.approx(5e9)
    assert update.images_per_second == pytest.approx(200 / 1.1)
    assert cluster.smallest_batch(load, ASSUMED, gpus=2) == pytest.approx(500)
    assert cluster.work_out(load, ASSUMED, gpus=2, batch=500).waiting == pytest.approx(0)


def test_one_gpu_waits_for_nobody() -> None:
    load = cluster.Load(operations=10**9, gradient_bytes=10**9, sharded=True)
    update = cluster.work_out(load, ASSUMED, gpus=1, batch=10)
    assert (update.sent, update.waiting, update.needed) == (0, 0, 0)
    assert cluster.cells(update, ASSUMED)[6:] == ["1,000", "0.10", "10.0", "1 s"]


def test_the_report_of_a_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml"
    assert call(monkeypatch, cluster, "--cfg", cfg, "--gpus", 16) == 0
    said = capsys.readouterr().out
    assert "89,874,104 parameters, 68.3 GFLOP for an image, SHARDING none, 359 MB" in said
    rows = [line for line in said.splitlines() if line.startswith("| 16 |")]
    assert len(rows) == 2
    assert rows[0] == rows[1]  # 16 x 128 are the published 2,048
    for flag in ("--gpus", "--network"):
        assert call(monkeypatch, cluster, "--cfg", cfg, flag, 0) == 2
        assert f"{flag} takes" in capsys.readouterr().err
