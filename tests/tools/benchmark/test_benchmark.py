"""The benchmark as a user runs it, in real processes, on small models and pictures."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.kills import forked
from tests.support.small_encoders import SMALL
from tests.support.small_runs import call, under_torchrun, write_config, write_finetune_config
from tools.benchmark import __main__ as benchmark
from tools.benchmark import rivals
from tools.measuring import kernels, measure
from tools.measuring.measure import Side, Work, as_it_comes, in_turn, ratio
from utils.config import get_config
from utils.memory import HUGE_PAGES


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides that start in no time, since they have imported everything already."""
    forked()
    monkeypatch.setattr(measure, "START_METHOD", "forkserver")


def figures_of(said: str) -> dict[str, Any]:
    """The line of JSON at the end of what the benchmark prints."""
    figures: dict[str, Any] = json.loads(said.splitlines()[-1])
    return figures


@pytest.mark.usefixtures("prepared")
@pytest.mark.slow
def test_updates_are_compared_with_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["step", "--cfg", write_config(tmp_path), "--vs", "transformers", "--rounds", 2]
    assert call(monkeypatch, benchmark, *arguments) == 0
    said = capfd.readouterr().out
    assert "this project is" in said
    assert "times as fast as transformers" in said
    figures = figures_of(said)
    rivals = ["transformers", "transformers, no denormals"]
    assert {name: len(seconds) for name, seconds in figures["seconds"].items()} == dict.fromkeys(
        ["this project", *rivals], 2
    )
    assert list(figures["ratio"]) == rivals
    for row in figures["rows"].values():
        assert 0 < row["utilization"] < 1
        assert row["images_per_second"] == pytest.approx(4 / row["seconds_per_update"])
        assert row["memory_mb"] > 100
    assert sum(figures["breakdown"].values()) == pytest.approx(1)
    assert 0.5 < figures["profiled"] < 5  # more in 20 ms than in an update of a true size
    assert figures["breakdown"]["matrix products"] > 0.02
    assert figures["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.usefixtures("prepared")
@pytest.mark.slow
def test_updates_of_fine_tuning_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = write_finetune_config(tmp_path)
    assert call(monkeypatch, benchmark, "step", "--cfg", cfg, "--rounds", 1, "--updates", 2) == 0
    figures = figures_of(capfd.readouterr().out)
    row = figures["rows"]["this project"]
    assert row["images_per_second"] == pytest.approx(2 * 4 / figures["seconds"]["this project"][0])
    assert "ratio" not in figures


@pytest.mark.usefixtures("prepared")
@pytest.mark.slow
def test_the_input_pipeline_is_compared_with_plain_pil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "--cfg", write_config(tmp_path), "--vs", "pillow", "--rounds", 1]
    arguments += ["--picture-size", "2100x1600", "--pictures", 9]
    assert call(monkeypatch, benchmark, *arguments) == 0
    figures = figures_of(capfd.readouterr().out)
    assert figures["pictures"] == 8  # two batches of four
    assert figures["ratio"]["pillow"]["median"] > 0
    speeds = figures["images_per_second_and_core"]
    assert list(speeds) == ["this project", "pillow"]


@pytest.mark.usefixtures("prepared")
@pytest.mark.slow
def test_training_is_compared_with_updates_on_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--cfg", write_config(tmp_path), "--rounds", 1, "--updates", 2]
    arguments += ["--opts", "DATA.DATASET", "imagenet"]  # generated files
    assert call(monkeypatch, benchmark, *arguments) == 0
    rows = figures_of(capfd.readouterr().out)["rows"]
    assert rows["training"]["data_wait"] > 0.01 > rows["on noise"]["data_wait"]


@pytest.mark.slow
def test_processes_of_torchrun_are_measured_together(tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    arguments = ["--rounds", 2, "--updates", 20]  # 80 images of each: the data set begins again
    done = under_torchrun(2, cfg, *arguments, program="-m tools.benchmark train")
    assert done.returncode == 0, done.stderr
    assert "Warning: Grad strides" not in done.stderr
    figures = figures_of(done.stdout)
    (row,), (seconds,) = figures["rows"].values(), figures["seconds"].values()
    assert figures["processes"] == 2
    assert row["images_per_second"] == pytest.approx(2 * 20 * 4 / (sum(seconds) / 2))


def test_under_torchrun_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(monkeypatch, benchmark, "data", "--cfg", write_config(tmp_path)) == 2
    assert "under torchrun only step and train are measured" in capfd.readouterr().err


@pytest.mark.usefixtures("prepared")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["step", "--vs", "pillow"],
            "against transformers, math or eager, not pillow",
        ),
        (["step", "--vs", "transformers", "--opts", "MODEL.TYPE", "swinv2"], "not for swinv2"),
        (
            ["step", "--vs", "transformers", "--opts", "MODEL.SWIN.WINDOW_SIZE", "8"],
            "MODEL.SWIN.WINDOW_SIZE is 8, the last stage 4",
        ),
        (["train", "--vs", "math"], "train is measured against nothing else, not math"),
        (["data", "--data-path", "/nowhere"], "/nowhere is not a folder"),
        (["step", "--picture-size", "9x9"], "is for pictures that data and train draw without DIR"),
        (["step", "--vs", "math", "--device", "cpu"], "--vs math is for GPUs"),
        (["step", "--vs", "eager"], "--vs eager compares with --opts TRAIN.COMPILE model"),
        (["data", "--picture-size", "9x"], "--picture-size is '9x', expected two sides"),
        (["train", "--batch-size", "64"], "fewer than one update needs"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    what, *rest = arguments
    assert call(monkeypatch, benchmark, what, "--cfg", write_config(tmp_path), *rest) == 2
    assert message in capfd.readouterr().err


def test_without_transformers_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    cfg = get_config(None, [*SMALL["swin"], "MODEL.NAME", "pretrain"])
    with pytest.raises(ValueError, match="pip install transformers"):
        rivals.require_transformers(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_the_models_of_transformers_have_the_sizes_of_ours(kind: str) -> None:
    opts = [*SMALL[kind], "MODEL.NAME", "pretrain"]
    if kind == "vit":  # theirs knows absolute positions only
        opts += ["MODEL.VIT.USE_SHARED_RPB", False, "MODEL.VIT.USE_APE", True]
        opts += ["MODEL.VIT.INIT_VALUES", None, "MODEL.VIT.USE_RPB", False]
    cfg = get_config(None, opts)
    ours = rivals.build_pretrain_model(cfg)
    theirs = rivals.build_transformers_model(cfg, ours.encoder.stride)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    keys = cfg.MODEL.VIT
    biases_of_keys = keys.DEPTH * keys.EMBED_DIM if kind == "vit" else 0  # which ours has not
    assert counts[0] + biases_of_keys == counts[1]


def _append(path: Path, word: str) -> Work:
    def run() -> None:
        with path.open("a") as file:
            file.write(word)

    return Work(run, lambda: {HUGE_PAGES: os.environ.get(HUGE_PAGES)})


@pytest.mark.slow
def test_both_sides_of_a_comparison_work_in_turn_each_with_its_own_settings(tmp_path: Path) -> None:
    path = tmp_path / "order"
    sides = [Side("a", _append, (path, "a")), Side("b", _append, (path, "b"), as_it_comes)]
    times = in_turn(sides, rounds=2)
    figures = [side.figures()[HUGE_PAGES] for side in sides]
    for side in sides:
        side.close()
        assert side.process.exitcode == 0
    assert path.read_text() == "aaa" + "bbb" + "abab"  # warmed up one after the other
    assert [len(seconds) for seconds in times.values()] == [2, 2]
    assert figures == ["1", None]


def _refuse() -> Work:
    raise ValueError("no such picture")


def _end() -> Work:
    os._exit(7)


@pytest.mark.usefixtures("prepared")
@pytest.mark.slow
def test_an_error_in_one_side_of_a_comparison_is_reported() -> None:
    for make, message in ((_refuse, "no such picture"), (_end, "ended with status 7")):
        side = Side("x", make, ())
        with pytest.raises(ValueError, match=message):
            side.seconds()
        side.close()


@pytest.mark.usefixtures("prepared")
@pytest.mark.slow
def test_a_side_that_is_abandoned_while_it_works_ends_by_itself(tmp_path: Path) -> None:
    side = Side("x", _append, (tmp_path / "order", "x"))
    side.seconds()  # it has started, however long that takes here
    side.connection.send("run")
    side.close()
    assert side.process.exitcode == 0


def test_the_ratio_is_the_median_of_the_ratios_of_all_rounds() -> None:
    spread = ratio([1.0, 2.0, 4.0], [3.0, 2.0, 8.0])
    assert spread == {"median": 2.0, "smallest": 1.0, "largest": 3.0}


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention", "fused attention"),
        ("aten::native_layer_norm_backward", "normalization"),
        ("aten::gelu_backward", "GELU"),
        ("aten::_fused_adamw_", "optimizer and clipping"),
        ("aten::copy_", "copies, casts, gathers"),
        ("aten::add_", "elementwise, sums"),
        ("aten::convolution_backward", "convolutions"),
        ("triton_poi_fused_gelu_3", "compiled kernels"),
        ("something new", "other operators"),
    ],
)
def test_operators_are_sorted_by_kind(operator: str, kind: str) -> None:
    assert kernels.kind_of(operator) == kind


@pytest.mark.slow
def test_a_matrix_product_takes_most_of_its_own_time() -> None:
    one = torch.randn(512, 512)
    device = torch.device("cpu")

    def run() -> None:
        for _ in range(20):
            one @ one

    assert next(iter(kernels.breakdown(run, device)[0])) == "matrix products"
    assert kernels.matmul_peak(device, torch.float32, repeats=1) > 1e9
