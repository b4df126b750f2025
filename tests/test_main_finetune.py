"""Fine-tuning and evaluation at the command line: the whole chain, equal counts, no accidents."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import main_finetune
from data.transforms import Normalizer, eval_transform
from models import build_classifier
from tests.support.golden_cases import GOLDEN, options, read_golden
from tests.support.pairs import run_processes
from tests.support.small_runs import (
    checkpoint_of,
    equal,
    metrics_of,
    run_folder,
    run_here,
    snapshot,
    write_config,
    write_finetune_config,
)
from utils.checkpoints.reading import read_checkpoint
from utils.config import get_config

ACCURACY = re.compile(r"\* Acc@1 (\d+\.\d{3}) Acc@5 (\d+\.\d{3})")


def finetune_here(monkeypatch: pytest.MonkeyPatch, cfg: Path, *arguments: Any) -> int:
    return run_here(monkeypatch, cfg, *arguments, program=main_finetune)


def finetune_processes(number: int, cfg: Path, *arguments: Any) -> str:
    """What a run says that has to end well."""
    statuses, said = run_processes(number, cfg, *arguments, program="main_finetune")
    assert statuses == [0] * number, said
    return said


def folder_of(folder: Path, tag: str = "tiny") -> Path:
    return run_folder(folder, tag, "finetune")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pre-trained Swin and a classifier fine-tuned from it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_here(monkeypatch, write_config(folder), "--output", folder) == 0
        pretrained = run_folder(folder) / "ckpt_epoch_1.pth"
        cfg = write_finetune_config(folder)
        arguments = ["--output", folder, "--pretrained", pretrained]
        assert finetune_here(monkeypatch, cfg, *arguments) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"), [("swin", 1), ("vit", 2), ("swinv2", 2), ("resnet", 2), ("convnext", 1)]
)
def test_a_model_is_pretrained_fine_tuned_and_evaluated(
    tmp_path: Path, kind: str, number: int
) -> None:
    """On one and on two processes; --eval finds what the training reported."""
    cfg = write_config(tmp_path, kind)
    statuses, said = run_processes(number, cfg, "--output", tmp_path)
    assert statuses == [0] * number, said
    cfg = write_finetune_config(tmp_path, kind)
    pretrained = run_folder(tmp_path) / "ckpt_epoch_1.pth"
    arguments = ["--output", tmp_path, "--opts", "TRAIN.EPOCHS", 3, "MODEL.DROP_PATH_RATE", 0.0]
    text = finetune_processes(number, cfg, "--pretrained", pretrained, *arguments)
    assert re.search(r"ckpt_epoch_1\.pth: loaded: \d+; resized: 0; initialized: [24] ", text)
    assert "32 images of 10 classes to train on" in text
    lines = metrics_of(tmp_path, name="finetune")
    validations = [line for line in lines if "val_acc1" in line]
    assert [line["epoch"] for line in validations] == [0, 1, 2]
    assert validations[-1]["val_loss"] < 2.5

    best = folder_of(tmp_path) / "best.pth"
    text = finetune_processes(number, cfg, "--output", tmp_path, "--eval", "--resume", best)
    match = ACCURACY.search(text)
    assert match is not None
    acc1 = max(line["val_acc1"] for line in validations)
    assert float(match[1]) == pytest.approx(acc1, abs=5e-4)
    report = json.loads((folder_of(tmp_path) / "eval__best__tiny.json").read_text())
    assert report["acc1"] == acc1
    assert report["images"] == 37
    assert [entry["index"] for entry in report["per_class"]] == list(range(10))
    assert [entry["name"] for entry in report["per_class"]] == read_checkpoint(best)["classes"]
    hits = [entry["images"] * entry["acc1"] / 100 for entry in report["per_class"]]
    assert sum(hits) == pytest.approx(37 * acc1 / 100)


@pytest.mark.slow
def test_a_classifier_learns_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on 80 pictures without augmentation, it begins to know them by heart."""
    cfg = write_finetune_config(tmp_path)
    opts = ["DATA.NUM_SHAPES", 80, "DATA.BATCH_SIZE", 16, "TRAIN.EPOCHS", 40, "EVAL_FREQ", 40]
    opts += [
        "TRAIN.BASE_LR",
        0.2,
        "MODEL.SWIN.EMBED_DIM",
        48,
        "TRAIN.LAYER_DECAY",
        1.0,
        "MODEL.DROP_PATH_RATE",
        0.0,
    ]
    opts += ["AUG.MIXUP", 0.0, "AUG.CUTMIX", 0.0, "AUG.REPROB", 0.0, "MODEL.LABEL_SMOOTHING", 0.0]
    opts += ["AUG.CROP_SCALE", [1.0, 1.0], "AUG.COLOR_JITTER", 0.0, "SAVE_FREQ", 40]
    assert finetune_here(monkeypatch, cfg, "--output", tmp_path, "--opts", *opts) == 0
    losses = [
        line["loss_mean"] for line in metrics_of(tmp_path, name="finetune") if "index" in line
    ]
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_leaves_everything_that_is_promised(finished: Path) -> None:
    folder = folder_of(finished)
    names = {path.name for path in folder.iterdir()}
    files = {"best.pth", "ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "config.yaml", "log_rank0.txt"}
    assert files | {"augmentation.png", "metrics.jsonl", "tensorboard"} <= names
    state = checkpoint_of(finished, 1, name="finetune")
    assert state["classes"][0] == "circle"
    accuracies = [line.get("val_acc1", -1.0) for line in metrics_of(finished, name="finetune")]
    assert state["best"]["acc1"] == max(accuracies)
    assert read_checkpoint(folder / "best.pth")["epoch"] == state["best"]["epoch"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("swin", []),
        ("swin", ["TRAIN.EMA_DECAY", 0.9, "TRAIN.ACCUMULATION_STEPS", 2]),
        ("resnet", ["TRAIN.EMA_DECAY", 0.9]),
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    extra: list[Any],
) -> None:
    cfg = write_finetune_config(tmp_path, kind)
    for tag in ("whole", "stopped"):
        arguments = ["--output", tmp_path, "--tag", tag, "--opts", "TRAIN.EPOCHS", 3, *extra]
        assert finetune_here(monkeypatch, cfg, *arguments) == 0
        if tag == "stopped":
            for name in ("ckpt_epoch_1.pth", "ckpt_epoch_2.pth", "best.pth"):
                (folder_of(tmp_path, tag) / name).unlink()
            capsys.readouterr()
            assert finetune_here(monkeypatch, cfg, *arguments) == 0
            assert "holds no best.pth of the epochs before" in capsys.readouterr().out
    whole, stopped = (checkpoint_of(tmp_path, 2, tag, "finetune") for tag in ("whole", "stopped"))
    for part in ("model", "optimizer", "lr_scheduler", "best", "classes", "update"):
        assert equal(whole[part], stopped[part]), part
    assert ("model_ema" in whole) == bool(extra)
    if extra:
        assert equal(whole["model_ema"], stopped["model_ema"])


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_averaged_weights_follow_the_formula_and_are_what_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    cfg = write_finetune_config(tmp_path, kind)
    arguments = ["--output", tmp_path, "--batch-size", 32, "--opts", "TRAIN.EMA_DECAY", 0.75]
    assert finetune_here(monkeypatch, cfg, *arguments) == 0  # one update per epoch
    first, second = (checkpoint_of(tmp_path, epoch, name="finetune") for epoch in (0, 1))
    for name, value in second["model_ema"].items():
        expected = 0.75 * first["model_ema"][name] + 0.25 * second["model"][name]
        if name.endswith("num_batches_tracked"):  # a count, not averaged
            expected = second["model"][name]
        torch.testing.assert_close(value, expected)
    capsys.readouterr()
    checkpoint = folder_of(tmp_path) / "ckpt_epoch_1.pth"
    assert (
        finetune_here(monkeypatch, cfg, *arguments, "EVAL_MODE", True, "MODEL.RESUME", checkpoint)
        == 0
    )
    match = ACCURACY.search(capsys.readouterr().out)
    last = [line for line in metrics_of(tmp_path, name="finetune") if "val_acc1" in line][-1]
    assert match is not None
    assert float(match[1]) == pytest.approx(last["val_acc1"], abs=5e-4)


@pytest.mark.slow
def test_accuracy_is_the_same_for_any_processes_and_batch_size(finished: Path) -> None:
    """37 images, a prime number; every report is the same to the last digit but for the loss."""
    cfg = write_finetune_config(finished)
    checkpoint = folder_of(finished) / "best.pth"
    reports = []
    for number, batch_size in ((1, 1), (1, 7), (1, 64), (2, 7), (3, 7)):
        arguments = ["--eval", "--resume", checkpoint, "--batch-size", batch_size]
        arguments += ["--output", finished, "--tag", f"eval{number}_{batch_size}"]
        text = finetune_processes(number, cfg, *arguments)
        assert len(ACCURACY.findall(text)) == 1  # the first process speaks for all
        path = folder_of(finished) / f"eval__best__eval{number}_{batch_size}.json"
        reports.append(json.loads(path.read_text()))
        assert not folder_of(finished, f"eval{number}_{batch_size}").exists()
    losses = [report.pop("loss") for report in reports]
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-6)
    assert all(report == reports[0] for report in reports)
    assert reports[0]["images"] == 37


def draw_val_folder(root: Path, num_classes: int) -> list[tuple[Path, int]]:
    """val/<class>/ with one picture of noise for each class and two more for the first."""
    random = np.random.default_rng(0)
    drawn = []
    for number in range(num_classes + 2):
        label = number % num_classes
        folder = root / "val" / f"class{label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number}.png"
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((250, 200)).save(path)
        drawn.append((path, label))
    return drawn


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_published_checkpoints_are_evaluated_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """The golden file in the published format, against the network called on each picture."""
    config = read_golden("checkpoints/expected.json")[kind]["finetune_config"]
    # The report lies beside it.
    checkpoint = Path(shutil.copy(GOLDEN / f"checkpoints/{kind}_finetune.pth", tmp_path))
    drawn = draw_val_folder(tmp_path, 11)
    model = build_classifier(get_config(None, options(config)), 11).eval()
    model.load_state_dict(read_checkpoint(checkpoint)["model"], strict=False)
    transform = eval_transform(config["DATA.IMG_SIZE"], "bicubic", crop=True)
    ranks = []
    for path, label in drawn:
        image = Normalizer()(transform(Image.open(path))[None])
        with torch.no_grad():
            order = model(image)[0].argsort(descending=True).tolist()
        ranks.append(order.index(label))
    expected = [100 * sum(rank < limit for rank in ranks) / len(ranks) for limit in (1, 5)]
    assert 0 < expected[1] < 100

    (tmp_path / "empty.yaml").write_text("DEVICE: cpu\n")
    arguments = ["--eval", "--resume", checkpoint, "--data-path", tmp_path, "--output", tmp_path]
    opts = [*options(config), "DATA.BATCH_SIZE", 4, "DATA.NUM_WORKERS", 0]
    assert finetune_here(monkeypatch, tmp_path / "empty.yaml", *arguments, "--opts", *opts) == 0
    out = capsys.readouterr().out
    assert f"* Acc@1 {expected[0]:.3f} Acc@5 {expected[1]:.3f}" in out
    assert "prepared otherwise" not in out

    # The same pictures without class folders, and a list.
    (tmp_path / "flat" / "val").mkdir(parents=True)
    for path, _ in drawn:
        shutil.copy(path, tmp_path / "flat" / "val")
    lines = [f"{path.name} {label}" for path, label in drawn]
    (tmp_path / "truth.txt").write_text("\n".join(lines))
    arguments[4] = tmp_path / "flat"
    opts += ["DATA.VAL_LABELS", tmp_path / "truth.txt"]
    assert finetune_here(monkeypatch, tmp_path / "empty.yaml", *arguments, "--opts", *opts) == 0
    assert f"* Acc@1 {expected[0]:.3f} Acc@5 {expected[1]:.3f}" in capsys.readouterr().out


def test_evaluation_builds_no_training_part(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that holds val/ alone is enough, and odd batches that Mixup would refuse."""
    draw_val_folder(tmp_path, 10)
    weights = read_checkpoint(folder_of(finished) / "best.pth")["model"]
    torch.save({"model": weights}, tmp_path / "bare.pth")
    arguments = ["--eval", "--resume", tmp_path / "bare.pth", "--data-path", tmp_path]
    arguments += ["--output", tmp_path, "--batch-size", 3, "--opts", "DATA.DATASET", "imagenet"]
    assert finetune_here(monkeypatch, write_finetune_config(tmp_path), *arguments) == 0
    assert (tmp_path / "eval__bare__tiny.json").exists()
    assert not folder_of(tmp_path).exists()


def test_evaluation_and_fine_tuning_name_what_differs_from_training(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg, folder = write_finetune_config(finished), folder_of(finished)
    best = shutil.copy(folder / "best.pth", tmp_path)
    start = ["--output", tmp_path, "--pretrained", run_folder(finished) / "ckpt_epoch_1.pth"]
    start += ["--opts", "TRAIN.EPOCHS", 1, "DATA.NUM_SHAPES", 4]
    for command in (["--eval", "--resume", best, "--opts", "DATA.NUM_VAL_SHAPES", 20], start):
        assert finetune_here(monkeypatch, cfg, *command) == 0
        assert " -> [" not in capsys.readouterr().out
    other = ["DATA.MEAN", "[0.1,0.1,0.1]", "TEST.CROP", "False", "DATA.INTERPOLATION", "nearest"]
    mean = r"DATA\.MEAN \[0\.485, 0\.456, 0\.406\] -> \[0\.1, 0\.1, 0\.1\]"
    assert finetune_here(monkeypatch, cfg, "--eval", "--resume", best, "--opts", *other) == 0
    line = rf"best\.pth was trained with pictures prepared otherwise: {mean}, DATA\.INTERPOLATION "
    line += r"'bicubic' -> 'nearest', TEST\.CROP True -> False\n"
    assert re.search(line, capsys.readouterr().out)
    assert finetune_here(monkeypatch, cfg, *start, *other, "TAG", "other") == 0
    line = rf"ckpt_epoch_1\.pth was trained with another normalization of pictures: {mean}\n"
    assert re.search(line, capsys.readouterr().out)


def test_a_report_of_other_data_does_not_replace_the_one_before(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, folder = write_finetune_config(finished), folder_of(finished)
    arguments = ["--eval", "--resume", folder / "best.pth", "--tag", "again", "--opts"]
    for number in (37, 37, 20):
        assert finetune_here(monkeypatch, cfg, *arguments, "DATA.NUM_VAL_SHAPES", number) == 0
    assert "eval__best__again.json (the one before is eval__best__again__1.json)" in (
        capsys.readouterr().out
    )
    reports = [folder / f"eval__best__again{number}.json" for number in ("", "__1")]
    assert [json.loads(path.read_text())["images"] for path in reports] == [20, 37]
    assert not (folder / "eval__best__again__2.json").exists()


def test_a_run_that_goes_on_does_not_need_the_file_from_which_it_began(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = write_finetune_config(tmp_path)
    file = Path(shutil.copy(run_folder(finished) / "ckpt_epoch_1.pth", tmp_path / "file.pth"))
    arguments = ["--output", tmp_path, "--pretrained", file, "--opts", "TRAIN.EPOCHS"]
    assert finetune_here(monkeypatch, cfg, *arguments, 1) == 0
    file.unlink()
    assert finetune_here(monkeypatch, cfg, *arguments, 2) == 0
    said = capsys.readouterr().out
    assert "file.pth is not read: the run goes on from a checkpoint of its own" in said
    assert "Train: [1/2]" in said
    assert finetune_here(monkeypatch, cfg, *arguments, 2, "TAG", "new") == 2
    assert "file.pth does not exist" in capsys.readouterr().err


def test_a_run_refuses_to_go_on_with_another_file_than_it_began_from(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, folder = write_finetune_config(finished), run_folder(finished)
    before = snapshot(finished)
    arguments = ["--output", finished, "--pretrained", folder / "ckpt_epoch_0.pth"]
    assert finetune_here(monkeypatch, cfg, *arguments) == 2
    assert re.search(r"began from \S+ckpt_epoch_1\.pth, not from", capsys.readouterr().err)
    assert snapshot(finished) == before


def test_throughput_needs_neither_data_nor_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = write_finetune_config(tmp_path)
    monkeypatch.setattr(main_finetune, "THROUGHPUT_SECONDS", 0.1)
    assert finetune_here(monkeypatch, cfg, "--throughput", "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert re.match(r"batch_size 4 throughput \d+\.\d images/s \(forward, \w+, each of 1", out)
    assert not (tmp_path / "out").exists()


class Evil:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def write_wrong_files(folder: Path, finished: Path) -> None:
    """What the mistakes below give to the program."""
    whole = (folder_of(finished) / "best.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pth").write_text("no checkpoint")
    torch.save({"model": Evil()}, folder / "evil.pth")
    for root, change in (("other", "wasp"), ("empty", None), ("odd", None)):
        for part in ("train", "val"):
            for name in ("ant", change if change and part == "val" else "bee"):
                (folder / root / part / name).mkdir(parents=True)
                picture = Image.new("RGB", (8, 8))
                if root != "empty" or name == "ant":
                    picture.save(folder / root / part / name / "x.png")
    (folder / "odd/train.csv").write_text("path,label\ntrain/ant/x.png,ant\ntrain/bee/x.png,bee\n")
    (folder / "odd/val.csv").write_text("path,label\nval/ant/x.png,ant\nval/bee/x.png,7\n")
    (folder / "truth.txt").write_text("1\n10\n")


FOLDERS = ["--opts", "DATA.DATASET", "imagenet", "DATA.DATA_PATH"]
NEW = ["--tag", "new"]  # a run that goes on reads no --pretrained
MISTAKES: dict[str, tuple[list[Any], str]] = {
    "another architecture": (
        [*NEW, "--pretrained", "{pre}", "--opts", "MODEL.TYPE", "vit"],
        "ckpt_epoch_1.pth does not fit the model: cls_token is missing",
    ),
    "another size": (
        [*NEW, "--pretrained", "{pre}", "--opts", "MODEL.SWIN.EMBED_DIM", 32],
        r"patch_embed\.proj\.weight has shape \(16, .*\), the model \(32,",
    ),
    "resumed from another stage": (["--resume", "{pre}"], "holds no best .*--pretrained"),
    "evaluated before fine-tuning": (
        ["--eval", "--resume", "{pre}"],
        "ckpt_epoch_1.pth has no classification head: .*--pretrained",
    ),
    "evaluated as another architecture": (
        ["--eval", "--resume", "{best}", "--opts", "MODEL.TYPE", "vit"],
        "best.pth does not fit the model: cls_token is missing",
    ),
    "truncated": (
        [*NEW, "--pretrained", "{tmp}/truncated.pth"],
        "truncated.pth is damaged, or no checkpoint",
    ),
    "truncated, evaluated": (
        ["--eval", "--resume", "{tmp}/truncated.pth"],
        "truncated.pth is damaged, or no checkpoint",
    ),
    "no checkpoint": (
        [*NEW, "--pretrained", "{tmp}/text.pth"],
        "text.pth is damaged, or no checkpoint",
    ),
    "a run's folder": (
        [*NEW, "--pretrained", "{run}"],
        r"it is a folder: name a checkpoint in it, for example \S+pretrain/tiny/ckpt_epoch_1\.pth",
    ),
    "a run's folder, evaluated": (
        ["--eval", "--resume", "{run}"],
        r"it is a folder: name a checkpoint in it, for example \S+pretrain/tiny/ckpt_epoch_1\.pth",
    ),
    "a run's folder, resumed": (
        [*NEW, "--resume", "{run}"],
        r"is a folder: name a checkpoint in it, for example \S+pretrain/tiny/ckpt_epoch_1\.pth",
    ),
    "no file": ([*NEW, "--pretrained", "{tmp}/none.pth"], "none.pth does not exist"),
    "code": (
        [*NEW, "--pretrained", "{tmp}/evil.pth"],
        r"evil\.pth cannot be read: it holds \w+\.system, which is not plain data",
    ),
    "code, evaluated": (
        ["--eval", "--resume", "{tmp}/evil.pth"],
        r"evil\.pth cannot be read: it holds \w+\.system, which is not plain data",
    ),
    "other classes in val": (
        [*FOLDERS, "{tmp}/other"],
        "validation pictures of imagenet .*: 2 classes instead of 2 .unknown: wasp; missing: bee",
    ),
    "a class without images": ([*FOLDERS, "{tmp}/empty"], "class folders without pictures: bee"),
    "no train folder": ([*FOLDERS, "{tmp}"], "train is not a folder"),
    "no data path": (["--opts", "DATA.DATASET", "imagenet"], "DATA_PATH is empty"),
    "a label out of range": (
        ["--opts", "DATA.DATASET", "csv", "DATA.DATA_PATH", "{tmp}/odd"],
        r"val\.csv, line 3: label '7' is none of the 2 classes \(ant, bee\)",
    ),
    "a label out of range of the list": (
        [
            "--eval",
            "--resume",
            "{best}",
            *FOLDERS,
            "{tmp}/odd",
            "DATA.VAL_LABELS",
            "{tmp}/truth.txt",
        ],
        r"truth\.txt, line 2: label '10' is none of the 10 classes \(circle, ",
    ),
    "evaluated on other classes": (
        ["--eval", "--resume", "{best}", *FOLDERS, "{tmp}/odd"],
        "2 classes instead of 10 .unknown: ant, bee; missing: circle, ",
    ),
    "a list for another data set": (
        ["--opts", "DATA.VAL_LABELS", "{tmp}/truth.txt"],
        "VAL_LABELS is for DATASET imagenet, not for shapes",
    ),
    "--eval alone": (["--eval"], "--eval needs the checkpoint to evaluate: --resume CKPT"),
    "unknown data set": (
        ["--opts", "DATA.DATASET", "cifar"],
        "choices: imagenet, csv, shards, cifar10, ",
    ),
    "odd batch": (["--batch-size", 3], "Mixup and CutMix pair images"),
    "unknown augmentation": (["--opts", "AUG.AUTO_AUGMENT", "rand-q9"], "which timm does not know"),
    "other classes than the run": (
        [*FOLDERS, "{tmp}/odd", "DATA.BATCH_SIZE", 2],
        "the data and checkpoint .*ckpt_epoch_1.pth: 2 classes instead of 10",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_in_one_line_and_changes_nothing(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    arguments, message = MISTAKES[name]
    cfg = write_finetune_config(finished)
    write_wrong_files(tmp_path, finished)
    names = {"tmp": tmp_path, "pre": run_folder(finished) / "ckpt_epoch_1.pth"}
    names["run"] = run_folder(finished)
    names["best"] = folder_of(finished) / "best.pth"
    filled = [str(argument).format(**names) for argument in arguments]
    before = snapshot(finished) | snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    status = finetune_here(monkeypatch, cfg, "--output", finished, *filled)
    captured = capsys.readouterr()
    assert status == 2
    assert re.search(message, captured.err)
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert snapshot(finished) | snapshot(tmp_path) == before
