"""Sharded runs against ordinary ones: real processes, real files."""

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import main_finetune
import main_simmim
from tests.support.pairs import run_processes
from tests.support.small_runs import (
    call,
    checkpoint_of,
    equal,
    metrics_of,
    run_folder,
    run_here,
    snapshot,
    write_config,
    write_finetune_config,
)
from tools import export

PLAIN = ["TRAIN.PRECISION", "float32", "MODEL.DROP_PATH_RATE", 0.0]


def run(number: int, cfg: Path, output: Path, tag: str, *opts: Any, **options: str) -> str:
    """A run of some processes that must succeed; what it said."""
    arguments = ("--output", output, "--opts", "TAG", tag, *opts)
    statuses, said = run_processes(number, cfg, *arguments, **options)
    assert statuses == [0] * number, said[-2000:]
    return said


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of two epochs of Swin V2 on two processes, sharded ("full") and not ("ddp")."""
    output = tmp_path_factory.mktemp("sharded")
    cfg = write_config(output, "swinv2")
    run(2, cfg, output, "ddp", *PLAIN)
    run(2, cfg, output, "full", *PLAIN, "TRAIN.SHARDING", "full")
    return output


def weights_of(folder: Path, output: Path) -> dict[str, torch.Tensor]:
    """The weights of a sharded checkpoint."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(monkeypatch, export, "--consolidate", folder, "--to", output) == 0
    weights: dict[str, torch.Tensor] = torch.load(output, weights_only=True)["model"]
    return weights


def assert_same_run(output: Path, one: str, other: str, tolerance: float) -> None:
    found, expected = (metrics_of(output, tag) for tag in (one, other))
    assert len(found) == len(expected)
    for record, wanted in zip(found, expected, strict=True):
        for name in ("loss", "grad_norm"):
            assert record[name] == pytest.approx(wanted[name], rel=tolerance)
        assert record["lr"] == wanted["lr"]


@pytest.mark.slow
def test_a_sharded_run_equals_the_ordinary_one(sharded: Path, tmp_path: Path) -> None:
    assert_same_run(sharded, "full", "ddp", 1e-5)
    weights = weights_of(run_folder(sharded, "full") / "ckpt_epoch_1.sharded", tmp_path / "x.pth")
    expected = checkpoint_of(sharded, 1, "ddp")["model"]
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "opts", "tolerance"),
    [
        ("vit", ["TRAIN.ACCUMULATION_STEPS", 2, "TRAIN.CLIP_GRAD", 0.5], 1e-5),
        ("swin", ["TRAIN.USE_CHECKPOINT", True, "TRAIN.PRECISION", "bfloat16"], 1e-2),
        ("resnet", ["TRAIN.USE_CHECKPOINT", True], 1e-5),
        ("convnext", [], 1e-5),
    ],
)
def test_accumulation_clipping_recomputation_and_precision_keep_their_meaning(
    tmp_path: Path, kind: str, opts: list[Any], tolerance: float
) -> None:
    cfg = write_config(tmp_path, kind)
    keys = [*PLAIN, "TRAIN.EPOCHS", 1, *opts]
    run(2, cfg, tmp_path, "ddp", *keys)
    run(2, cfg, tmp_path, "full", *keys, "TRAIN.SHARDING", "full")
    assert_same_run(tmp_path, "full", "ddp", tolerance)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(sharded: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "full")
    folder.mkdir(parents=True)
    earlier = run_folder(sharded, "full")
    shutil.copytree(earlier / "ckpt_epoch_0.sharded", folder / "ckpt_epoch_0.sharded")
    cfg = write_config(tmp_path, "swinv2")
    said = run(2, cfg, tmp_path, "full", *PLAIN, "TRAIN.SHARDING", "full")
    assert "resumed from" in said
    found, expected = (
        weights_of(place / "ckpt_epoch_1.sharded", tmp_path / f"{index}.pth")
        for index, place in enumerate((folder, earlier))
    )
    assert equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_a_run_with_sgd_shards_and_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    cfg = write_config(tmp_path, kind)
    keys = [*PLAIN, "TRAIN.SHARDING", "full", "TRAIN.OPTIMIZER.NAME", "sgd"]
    run(2, cfg, tmp_path, "full", *keys)
    newest = run_folder(tmp_path, "full") / "ckpt_epoch_1.sharded"
    expected = weights_of(newest, tmp_path / "expected.pth")
    shutil.rmtree(newest)
    assert "resumed from" in run(2, cfg, tmp_path, "full", *keys)
    assert equal(weights_of(newest, tmp_path / "found.pth"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "batch_size"), [(1, 8), (4, 2)])
def test_another_number_of_processes_goes_on(
    sharded: Path, tmp_path: Path, number: int, batch_size: int
) -> None:
    """With as many images per update the run stays the same, to rounding."""
    folder = run_folder(tmp_path, "full")
    folder.mkdir(parents=True)
    earlier = run_folder(sharded, "full")
    shutil.copytree(earlier / "ckpt_epoch_0.sharded", folder / "ckpt_epoch_0.sharded")
    keys = [*PLAIN, "TRAIN.SHARDING", "full", "DATA.BATCH_SIZE", batch_size]
    run(number, write_config(tmp_path, "swinv2"), tmp_path, "full", *keys)
    found = metrics_of(tmp_path, "full")
    expected = [record for record in metrics_of(sharded, "full") if record["epoch"] == 1]
    assert [record["update"] for record in found] == [record["update"] for record in expected]
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)


@pytest.mark.slow
def test_fine_tuning_shards_too_and_its_file_evaluates_the_same(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """37 validation images: one process has a batch more than the other."""
    cfg = write_finetune_config(tmp_path, "swinv2")
    weights_of(run_folder(sharded, "full") / "ckpt_epoch_1.sharded", tmp_path / "start.pth")
    keys = [*PLAIN, "TRAIN.SHARDING", "full", "PRETRAINED", tmp_path / "start.pth"]
    keys += ["DATA.BATCH_SIZE", 6]
    run(2, cfg, tmp_path, "tiny", *keys, program="main_finetune")
    records = metrics_of(tmp_path, name="finetune")
    validated = [record["val_acc1"] for record in records if "val_acc1" in record]
    folder = run_folder(tmp_path, name="finetune")
    assert (folder / "best.sharded").is_dir()
    whole = tmp_path / "whole.pth"
    assert (
        call(monkeypatch, export, "--consolidate", folder / "ckpt_epoch_1.sharded", "--to", whole)
        == 0
    )
    arguments = ["--eval", "--resume", whole, "--output", tmp_path, "--opts", *PLAIN]
    assert run_here(monkeypatch, cfg, *arguments, program=main_finetune) == 0
    report = (tmp_path / "eval__whole__tiny.json").read_text()
    assert f'"acc1": {validated[-1]}' in report


def broken(folder: Path, kind: str) -> None:
    contents = folder / ".metadata"
    if kind == "missing":
        (folder / "__1_0.distcp").unlink()
    elif kind == "cut off":
        path = folder / "__0_0.distcp"
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "damaged":
        path = folder / "__1_0.distcp"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "damaged contents":  # well-formed: a letter of a moment's name is another one
        contents.write_bytes(contents.read_bytes().replace(b"norm.bias.step", b"norm.bias.stew"))
    elif kind == "no contents":
        contents.unlink()
    elif kind == "code":
        contents.write_bytes(pickle.dumps(print))
        (folder / ".metadata.sha256").unlink()
    elif kind == "negative size":
        table = pickle.loads(contents.read_bytes())
        table.state_dict_metadata["model.encoder.norm.weight"].size = (-1,)
        contents.write_bytes(pickle.dumps(table))
        (folder / ".metadata.sha256").unlink()
    else:
        (folder / "rest.pth").unlink()


BROKEN = {
    "missing": r"is incomplete: its __1_0\.distcp is missing",
    "cut off": r"is incomplete: its __0_0\.distcp ends too early",
    "damaged": r"its __1_0\.distcp is damaged \(checksum\)",
    "damaged contents": r"its \.metadata is damaged \(checksum\)",
    "no contents": r"is incomplete: its \.metadata is missing",
    "code": r"has no usable \.metadata: it holds 'builtins\.print', not plain data",
    "negative size": r"has no usable \.metadata: -1 is no size",
    "no rest": r"is incomplete: its rest\.pth is missing",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_gives_one_clear_error(
    sharded: Path,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "x.sharded"
    shutil.copytree(run_folder(sharded, "full") / "ckpt_epoch_0.sharded", folder)
    broken(folder, kind)
    before = snapshot(tmp_path)
    assert call(monkeypatch, export, "--consolidate", folder) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert re.search(BROKEN[kind], message)
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "damaged contents"])
def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one(
    sharded: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(run_folder(sharded, "full"), run_folder(tmp_path, "full"))
    broken(run_folder(tmp_path, "full") / "ckpt_epoch_1.sharded", kind)
    cfg = write_config(tmp_path, "swinv2")
    said = run(2, cfg, tmp_path, "full", *PLAIN, "TRAIN.SHARDING", "full")
    assert re.search(rf"{BROKEN[kind]}; set aside as ckpt_epoch_1\.sharded\.bad", said)
    assert "ckpt_epoch_0.sharded: epoch 1" in said


@pytest.mark.slow
def test_an_exported_file_lies_beside_the_checkpoint_and_no_run_takes_it_for_one(
    sharded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run_folder(tmp_path, "full")
    shutil.copytree(run_folder(sharded, "full"), folder)
    before = set(folder.iterdir())
    assert call(monkeypatch, export, "--consolidate", folder) == 2
    assert "is a run's folder: name a checkpoint in it, for example" in capsys.readouterr().err
    assert call(monkeypatch, export, "--consolidate", folder / "ckpt_epoch_1.sharded") == 0
    (exported,) = set(folder.iterdir()) - before
    assert exported.name == "weights_epoch_1.pth"
    content = exported.read_bytes()
    cfg = write_config(tmp_path, "swinv2")
    keys = [*PLAIN, "TRAIN.SHARDING", "full", "TRAIN.EPOCHS", 3]
    said = run(2, cfg, tmp_path, "full", *keys)
    assert "resumed from" in said
    assert "set aside" not in said
    assert exported.read_bytes() == content


@pytest.mark.slow
def test_another_optimizer_does_not_go_on_with_a_runs_moments(
    sharded: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder(sharded, "full"), run_folder(tmp_path, "full"))
    before = snapshot(tmp_path)
    keys = ["--opts", "TAG", "full", *PLAIN, "TRAIN.SHARDING", "full", "TRAIN.EPOCHS", 3]
    keys += ["TRAIN.OPTIMIZER.NAME", "sgd"]
    cfg = write_config(tmp_path.parent, "swinv2")
    statuses, said = run_processes(2, cfg, "--output", tmp_path, *keys)
    assert statuses == [2, 2]
    names = r"\['exp_avg', 'exp_avg_sq', 'step'\], SGD keeps \['momentum_buffer'\]"
    assert re.search(rf"rank 0: error: checkpoint \S+ holds the moments {names}", said)
    assert snapshot(tmp_path) == before


WRONG: dict[str, tuple[list[Any], str]] = {
    "no launcher": (["TRAIN.SHARDING", "full"], "which needs a launcher: start it with torchrun"),
    "another word": (["TRAIN.SHARDING", "half"], "TRAIN.SHARDING is 'half'; choices: none, full"),
    "sharded, but the run is not": ([], "is a sharded one: go on with TRAIN.SHARDING full, or"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_uses_of_sharding_give_one_clear_error(
    sharded: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opts, message = WRONG[name]
    shutil.copytree(run_folder(sharded, "full"), run_folder(tmp_path, "full"))
    before = snapshot(tmp_path)
    cfg = write_config(tmp_path.parent, "swinv2")
    keys = ["--output", tmp_path, "--opts", "TAG", "full", *PLAIN, *opts]
    assert run_here(monkeypatch, cfg, *keys, program=main_simmim) == 2
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_an_average_of_sharded_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = write_finetune_config(tmp_path, "swinv2")
    keys = ["--opts", "TRAIN.SHARDING", "full", "TRAIN.EMA_DECAY", 0.9]
    assert run_here(monkeypatch, cfg, *keys, program=main_finetune) == 2
    assert "TRAIN.EMA_DECAY and TRAIN.SHARDING exclude each other" in capsys.readouterr().err


@pytest.mark.slow
def test_an_ordinary_checkpoint_does_not_go_on_sharded(sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder(sharded, "ddp"), run_folder(tmp_path, "full"))
    cfg = write_config(tmp_path, "swinv2")
    keys = ["--output", tmp_path, "--opts", "TAG", "full", "TRAIN.SHARDING", "full"]
    statuses, said = run_processes(1, cfg, *keys)
    assert statuses == [2]
    assert "is not a sharded one, and TRAIN.SHARDING is full" in said


@pytest.mark.slow
def test_a_sharded_checkpoint_is_not_evaluated_but_explained(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(sharded, "full") / "ckpt_epoch_1.sharded"
    cfg = write_finetune_config(sharded, "swinv2")
    assert run_here(monkeypatch, cfg, "--eval", "--resume", folder, program=main_finetune) == 2
    expected = "is a sharded one: make one file of its weights first (python -m tools.export"
    assert expected in capsys.readouterr().err
    assert call(monkeypatch, export, "--consolidate", sharded, "--to", cfg) == 2
    assert "exists already: give another name" in capsys.readouterr().err
