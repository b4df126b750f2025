"""The study: its rows, what it starts, and its report."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data import build_mask
from models import build_classifier, build_pretrain_model
from tests.support.codebooks import write_codebook, write_tokenizer
from tests.support.long_runs import wait_for
from tests.support.recipe_updates import build_loop, short_recipe
from tests.support.small_runs import ROOT, call
from tools.study import __main__ as study
from tools.study.results import Results
from tools.study.rows import SCALES, TABLES, Row, rows_of
from tools.study.runs import Result, Settings, make_job
from utils.config import get_config, is_finetuning
from utils.training.engine import train_one_epoch

SMALL = (
    *("DATA.DATASET", "shapes", "DATA.NUM_SHAPES", 64, "DATA.NUM_VAL_SHAPES", 16),
    *("DATA.IMAGES_PER_CLASS", 4, "DATA.BATCH_SIZE", 4, "MODEL.VIT.DEPTH", 1),
    *("TRAIN.EPOCHS", 2, "SAVE_FREQ", 1, "DATA.NUM_WORKERS", 0, "DEVICE", "cpu"),
)
FOLDERS = [scale.folder for scale in SCALES.values()]
RECIPES = sorted(str(path.relative_to(ROOT)) for at in FOLDERS for path in at.glob("*.yaml"))
NARROW = ("MODEL.SWIN.EMBED_DIM", 32, "MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8])
SCOPE = ("--scale", "cifar10", "--table", "scope")


def settings(*opts: object, gpus: int = 1, scale: str = "cifar10") -> Settings:
    """Those of a study whose pictures are in DATA."""
    return Settings(SCALES[scale], "DATA", Path("OUT"), gpus, tuple(map(str, opts)))


def row(name: str, scale: str = "cifar10") -> Row:
    (found,) = rows_of(SCALES[scale], None, [name])
    return found


@pytest.mark.parametrize("scale", SCALES)
def test_each_recipe_of_the_study_is_a_row_of_a_table_and_named_by_what_it_changes(
    scale: str,
) -> None:
    rows = {row.name: row for row in rows_of(SCALES[scale], None, []) if "labels" not in row.name}
    files = {path.stem for path in SCALES[scale].folder.glob("*.yaml")}
    assert set(rows) | {"finetune"} == files
    changes = [row.changes() for row in rows.values()]
    assert len(set(changes)) == len(changes)
    assert all(row.changes() for row in rows.values() if row.name != "default")


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_builds_at_its_size_and_makes_an_update(tmp_path: Path, recipe: str) -> None:
    codebook, tokenizer = tmp_path / "codebook.safetensors", tmp_path / "tokenizer.onnx"
    write_codebook(codebook, 512)
    write_tokenizer(tokenizer, side=8)
    files = ["MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK", str(codebook)]
    files += ["MODEL.SIMMIM.TOKENS.FILE", str(tokenizer)]
    cfg = get_config(ROOT / recipe, files)
    with torch.device("meta"):
        if is_finetuning(cfg):
            build_classifier(cfg, 1000)
        else:
            mask = build_mask(cfg, build_pretrain_model(cfg).encoder.patch_size)
    if not is_finetuning(cfg):
        assert 0 < mask().float().mean() < 1
    small = short_recipe(recipe.removeprefix("configs/"), *NARROW, *files)
    loop = build_loop(small, torch.device("cpu"), torch.float32, updates=1)
    train_one_epoch(loop)
    assert loop.metrics.sums[2] == 1, "the update has a finite loss and gradient"


def test_the_papers_numbers_come_from_the_recipes() -> None:
    tables = {table: rows_of(SCALES["imagenet"], table, []) for table in TABLES}
    published = {
        table: {row.name: row.published() for row in rows} for table, rows in tables.items()
    }
    assert published["scope"] == {"default": 82.8, "scope_all": 81.7}
    assert [len(rows) for rows in tables.values()] == [2, 29, 10, 4, 6, 4, 0]
    assert list(published["resolution"].values()) == [82.8, 82.3, 82.7, 82.8, 82.7, 82.8]
    assert all(number is not None for rows in published.values() for number in rows.values())


def test_rows_of_a_label_curve_start_from_the_default_rows_encoder_or_from_fresh_weights() -> None:
    rows = rows_of(SCALES["cifar10"], "labels", [])
    assert len(rows) == 20
    assert len(rows_of(SCALES["cifar10"], "labels", ["labels_10_*", "labels_100_scratch_*"])) == 6
    pretrained = make_job(row("labels_10_pretrained_lr8e-3"), 3, settings())
    assert pretrained.pretraining is not None
    assert pretrained.pretraining.folder == Path("OUT/simmim_pretrain/default__seed3")
    assert pretrained.finetuning.cfg.DATA.IMAGES_PER_CLASS == 10
    scratch = make_job(row("labels_10_scratch_lr8e-3"), 3, settings())
    assert scratch.pretraining is None
    assert scratch.finetuning.cfg.TRAIN.LAYER_DECAY == 1.0
    assert "--pretrained" not in scratch.finetuning.arguments


def test_an_update_has_the_images_of_the_recipe_on_any_number_of_gpus() -> None:
    for gpus in (1, 2, 8, 16):
        job = make_job(row("default", "imagenet"), 0, settings(gpus=gpus, scale="imagenet"))
        for run in job.runs:
            micro_batches = max(run.cfg.TRAIN.ACCUMULATION_STEPS, 1)
            assert gpus * run.cfg.DATA.BATCH_SIZE * micro_batches == 2048
    with pytest.raises(ValueError, match="--gpus-per-run is 3, expected a divisor of 16"):
        make_job(row("default", "imagenet"), 0, settings(gpus=3, scale="imagenet"))


def test_a_result_of_other_settings_is_not_taken_for_that_of_a_row(tmp_path: Path) -> None:
    job, other = (make_job(row("default"), 1, settings(*opts)) for opts in ((), ("SEED", 5)))
    assert job.digest() == other.digest(), "the seed is a column of its own"
    results = Results(tmp_path / "results.csv")
    assert not results.knows(job)
    results.add(Result("default", 1, job.digest(), 50.0, 0.5, None))
    known = Results(tmp_path / "results.csv")
    assert known.knows(job)
    assert known.all == results.all
    changed = make_job(row("default"), 1, settings("TRAIN.EPOCHS", 5))
    with pytest.raises(ValueError, match=r"has a result of default, seed 1, with other settings"):
        known.knows(changed)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"holds no results of a study"):
        Results(tmp_path / "results.csv")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--rows", "mask_99"), "--rows mask_99 is no row of table scope: expected default or"),
        (("--opts", "TRAIN.EPOCS", 1), "TRAIN.EPOCS"),
        (("--gpus-per-run", 2, "--dry-run"), "--gpus-per-run is 2, expected a divisor of 1"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_trains_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[object, ...],
    expected: str,
) -> None:
    assert call(monkeypatch, study, *SCOPE, "--output", tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_dry_run_and_printed_commands_train_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*SCOPE, "--output", tmp_path / "out", "--seeds", 0, 1)
    assert call(monkeypatch, study, *flags, "--dry-run") == 0
    assert "scope_all, seed 1: to train; MODEL.SIMMIM.SCOPE all\n4 of 4" in capsys.readouterr().out
    assert call(monkeypatch, study, *flags, "--data-path", "DIR", "--print-commands") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.count(" && ") == 1 and "--data-path DIR/train" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_that_was_interrupted_goes_on_and_reports_all_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.study", *SCOPE, "--output", str(tmp_path / "out")]
    command += ["--opts", *map(str, SMALL)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    folder = tmp_path / "out/simmim_pretrain/default__seed0"
    wait_for(lambda: (folder / "ckpt_epoch_0.pth").exists(), 100)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert not (tmp_path / "out/cifar10.csv").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in (tmp_path / "out/logs/simmim_pretrain__default__seed0.log").read_text()
    with open(tmp_path / "out/cifar10.csv", newline="") as file:
        assert [line["row"] for line in csv.DictReader(file)] == ["default", "scope_all"]
    table = (tmp_path / "out/cifar10__scope.md").read_text().splitlines()
    assert [line.split(" | ")[3] for line in table[2:]] == ["1", "1"]
    assert (tmp_path / "out/cifar10__scope.png").exists()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.stdout.startswith("0 row(s) to train")
