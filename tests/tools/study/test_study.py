"""The study: its rows, what it starts, and its report."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
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
from tools.study.report import write_report
from tools.study.results import Results
from tools.study.rows import SCALES, TABLES, Row, rows_of
from tools.study.runs import Job, Result, Run, Settings, make_job
from tools.study.schedule import Schedule
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
TOKENIZER = "MODEL.SIMMIM.TOKENS.FILE"
HEADER = "row,seed,recipe,acc1,loss,seconds"
LABELS = ("--scale", "cifar10", "--table", "labels")
SCOPE = ("--scale", "cifar10", "--table", "scope")


def settings(*opts: object, gpus: int = 1, scale: str = "cifar10") -> Settings:
    """Those of a study whose pictures are in DATA."""
    return Settings(SCALES[scale], "DATA", Path("OUT"), gpus, tuple(map(str, opts)))


def job_settings(output: Path) -> Settings:
    """Those of a study whose results go to a folder."""
    return Settings(SCALES["cifar10"], "DATA", output, 1, ())


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


def test_the_name_of_a_row_tells_its_mask_or_the_resolution_of_its_target() -> None:
    found = 0
    for recipe in rows_of(SCALES["imagenet"], None, []):
        cfg = make_job(recipe, 0, settings(scale="imagenet")).pretraining.cfg  # type: ignore[union-attr]  # every row has one
        mask, side = cfg.DATA, 192 // cfg.DATA.MASK_PATCH_SIZE
        name = f"{mask.MASK}{mask.MASK_PATCH_SIZE}_ratio{mask.MASK_RATIO}"
        if mask.MASK == "square":
            length = round(side * mask.MASK_RATIO**0.5)
            name = f"square{mask.MASK_PATCH_SIZE}_{length}x{length}"
        resolution = 192 // cfg.MODEL.SIMMIM.TARGET_SHRINK
        if recipe.name.startswith(("mask_", "resolution_")):
            assert recipe.name in (f"mask_{name}", f"resolution_{resolution}")
            found += 1
        else:
            assert name == "random32_ratio0.6"
    assert found == 28 + 5


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


def test_results_with_another_codebook_are_those_of_other_settings(tmp_path: Path) -> None:
    path, digests = tmp_path / "codebook.safetensors", set()
    for number in (3, 4):
        write_codebook(path, number)
        opts = ("MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK", path)
        clusters = row("target_clusters512_48", "imagenet")
        digests.add(make_job(clusters, 0, settings(*opts, gpus=16, scale="imagenet")).digest())
    assert len(digests) == 2


def test_a_result_of_other_settings_is_not_taken_for_that_of_a_row(tmp_path: Path) -> None:
    job, other = (make_job(row("default"), 1, settings(*opts)) for opts in ((), ("SEED", 5)))
    assert job.digest() == other.digest(), "the seed is a column of its own"
    results = Results(tmp_path / "results.csv")
    assert not results.knows(job)
    results.add(Result("default", 1, job.digest(), 50.0, 0.5, None))
    known = Results(tmp_path / "results.csv")
    assert known.knows(job)
    other_seed = make_job(row("default"), 2, settings())
    assert not known.knows(other_seed)
    assert known.all == results.all
    known.require_settings([other_seed])
    known.require_settings([job])
    for opts in (("TRAIN.EPOCHS", 5), ("DATA.BATCH_SIZE", 64), ("TRAIN.ACCUMULATION_STEPS", 2)):
        changed = make_job(row("default"), 0, settings(*opts))
        with pytest.raises(ValueError, match=r"has a result of default, seed 1, with other sett"):
            known.require_settings([changed])
    same = settings("DATA.BATCH_SIZE", 64, "TRAIN.ACCUMULATION_STEPS", 32, scale="imagenet")
    recipe = row("default", "imagenet")
    assert (
        make_job(recipe, 0, same).digest()
        == make_job(recipe, 0, settings(scale="imagenet", gpus=8)).digest()
    )


def test_the_file_of_a_tokenizer_makes_another_run_of_its_row_alone() -> None:
    opts = (TOKENIZER, "x.onnx")
    for name, same in (("default", True), ("target_tokens", False)):
        recipe = row(name, "imagenet")
        with_file = make_job(recipe, 0, settings(*opts, scale="imagenet")).digest()
        assert (make_job(recipe, 0, settings(scale="imagenet")).digest() == with_file) == same


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n", r"its columns are \['a', 'b'\]"),
        (f"{HEADER}\nx,0,1,nan,,\n", r"seconds are \(nan, 0.0"),
        (f"{HEADER}\nx,0,1,50.0,,,more\n", "a line is"),
        (f"{HEADER}\nx,zero,1,50.0,,\n", "invalid literal"),
        (f"{HEADER}\nx,0,1,50.0,,\nx,0,1,51.0,,\n", "2 lines are of x, seed 0"),
    ],
)
def test_a_file_of_results_that_was_spoiled_by_hand_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=f"holds no results of a study .*{expected}"):
        Results(tmp_path / "results.csv")


def test_results_that_another_study_adds_meanwhile_are_kept(tmp_path: Path) -> None:
    studies = [Results(tmp_path / "results.csv") for _ in range(2)]
    for seed, study_of_rows in enumerate(studies):
        study_of_rows.add(Result("default", seed, "1", 50.0, None, 1.5))
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(text.replace("\n", "\r\n"), newline="")
    assert [result.seed for result in Results(tmp_path / "results.csv").all] == [0, 1]


def test_a_fine_tuning_from_a_pretraining_that_is_gone_is_not_the_rows_result(
    tmp_path: Path,
) -> None:
    job = make_job(row("default"), 0, job_settings(tmp_path))
    job.require_order()
    job.finetuning.folder.mkdir(parents=True)
    (job.finetuning.folder / "ckpt_epoch_9.pth").touch()
    failed = Schedule(job_settings(tmp_path), Results(tmp_path / "x.csv"), [""]).run([job], list)
    assert "not the pre-training that it began from" in failed[0]
    assert job.pretraining is not None
    job.pretraining.folder.mkdir(parents=True)
    (job.pretraining.folder / "ckpt_epoch_3.pth").touch()
    job.require_order()


def test_a_report_has_means_spreads_and_the_cost_relative_to_the_default_row(
    tmp_path: Path,
) -> None:
    results = Results(tmp_path / "results.csv")
    results.add(
        Result("default", 0, "1", 50.0, 0.5, 10.0),
        Result("default", 1, "1", 51.0, 0.7, 30.0),
        Result("scope_all", 0, "1", 40.5, 0.25, 50.0),
    )
    rows = rows_of(SCALES["imagenet"], "scope", [])
    lines = write_report(rows, results, tmp_path / "imagenet__scope")
    assert lines == [f"wrote {tmp_path}/imagenet__scope{suffix}" for suffix in (".md", ".png")]
    *_, default, scope_all = (tmp_path / "imagenet__scope.md").read_text().splitlines()
    assert default == "| default |  | 50.50 ± 0.71 | 2 | 82.8 | 1.00 | 0.6000 ± 0.1414 |"
    assert scope_all.endswith("SCOPE all | 40.50 | 1 | 81.7 | 2.50 | 0.2500 |")


class QuickRun(Run):
    """A run that takes no time and fails for one rate, or where its folder exists."""

    def command(self, gpus: int) -> list[str]:
        program = """import sys, json, pathlib
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
if "_lr8e-3" in folder.name:
    sys.exit("broken")
line = dict(time=2, loss_mean=1, num_updates=3, val_acc1=50)
(folder / "metrics.jsonl").write_text(json.dumps(line))
(folder / f"ckpt_epoch_{sys.argv[2]}.pth").touch()"""
        return [sys.executable, "-c", program, str(self.folder), str(self.cfg.TRAIN.EPOCHS - 1)]


def quick(job: Job) -> Job:
    first, second = (QuickRun(**vars(run)) for run in job.runs)
    return replace(job, pretraining=first, finetuning=second)


def test_several_slots_train_a_shared_pretraining_once_and_failures_stop_no_other_row(
    tmp_path: Path,
) -> None:
    rows = [row(f"labels_10_{start}") for start in ("pretrained_lr1.6e-2", "pretrained_lr8e-3")]
    jobs = [quick(make_job(one, 0, job_settings(tmp_path))) for one in [*rows, row("default")]]
    results = Results(tmp_path / "results.csv")
    failed = Schedule(job_settings(tmp_path), results, ["", ""]).run(jobs, list)
    assert len(failed) == 1
    assert "labels_10_pretrained_lr8e-3, seed 0 failed with status 1 (broken)" in failed[0]
    assert {result.row for result in results.all} == {"labels_10_pretrained_lr1.6e-2", "default"}
    assert {result.seconds for result in results.all} == {2 * 3 * 4}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--rows", "mask_99"), "--rows mask_99 is no row of table scope: expected default or"),
        (("--scale", "imagenet", "--table", "labels"), "labels has no rows for --scale imagenet"),
        (("--opts", "SEED", 5), "--opts SEED is set for each run: give --seeds"),
        (("--opts", "TRAIN.EPOCS", 1), "TRAIN.EPOCS"),
        (("--opts", "MODEL.SIMMIM.SCOPE", "all"), "SCOPE is what distinguishes the row scope_all"),
        (("--gpus-per-run", 2, "--dry-run"), "--gpus-per-run is 2, expected a divisor of 1"),
        (("--data-path", "nowhere"), "there is no nowhere (--data-path)"),
        (("--scale", "imagenet", "--table", "targets"), "there is no clusters512.safetensors (tar"),
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
    rows = ("--rows", "default", "default", "--rows", "scope_all")
    flags = (*SCOPE, *rows, "--output", tmp_path / "out", "--seeds", 0, 1, 1)
    assert call(monkeypatch, study, *flags, "--dry-run") == 0
    assert "scope_all, seed 1: to train; MODEL.SIMMIM.SCOPE all\n4 of 4" in capsys.readouterr().out
    assert call(monkeypatch, study, *flags, "--data-path", "DIR", "--print-commands") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.count(" && ") == 1 and "--data-path DIR/train" in line for line in lines)
    assert call(monkeypatch, study, *LABELS, "--output", tmp_path / "x", "--print-commands") == 0
    shared, *scratch = capsys.readouterr().out.splitlines()
    assert shared.count("main_simmim.py") == 1
    assert shared.count(" && ") == len(scratch) == 10
    assert not list(tmp_path.iterdir())


def test_printed_commands_of_a_finished_study_say_that_nothing_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study.print_commands([], 1)
    said = capsys.readouterr()
    assert not said.out
    assert "nothing is left to train" in said.err


def test_a_row_does_not_name_the_file_that_options_may_replace() -> None:
    row, *_ = rows_of(SCALES["imagenet"], "targets", ["target_clusters512_48"])
    assert row.changes() == (
        "MODEL.SIMMIM.TARGET color_clusters, MODEL.SIMMIM.LOSS cross_entropy, "
        "MODEL.SIMMIM.TARGET_SHRINK 4"
    )


@pytest.mark.slow
def test_a_study_that_was_interrupted_goes_on_and_reports_all_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.study", *SCOPE, "--output", str(tmp_path / "out")]
    command += ["--opts", *map(str, SMALL)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    folder = tmp_path / "out/simmim_pretrain/default__seed0"
    wait_for(lambda: (folder / "ckpt_epoch_0.pth").exists(), 240)
    first.send_signal(signal.SIGINT)
    assert first.wait(120) == 130
    assert (tmp_path / "out/cifar10.csv").read_text() == f"{HEADER}\n"
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
