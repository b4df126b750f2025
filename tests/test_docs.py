"""The programs and commands on the pages do what the pages say."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import main_finetune
from data.build import DATASETS, LABELLED
from data.masking import MASKS
from data.shapes import CLASSES
from models import load_simmim
from models.build import DECODERS, ENCODERS, LOSSES, TARGETS
from tests.support.commands import (
    PAGES,
    Command,
    commands,
    inline_commands,
    require_understood,
)
from tests.support.docs_code import Example, examples, write_examples
from tests.support.playground import Playground
from tests.support.small_encoders import SMALL
from tests.support.small_runs import ROOT, metrics_of, run_folder, run_here
from tools import keys
from utils.config.defaults import DEFAULTS

DEMO = ROOT / "configs/demo/simmim_pretrain__swin_tiny__shapes64.yaml"
TABLES: tuple[dict[str, Any], ...] = (
    *(MASKS, LOSSES, DECODERS, TARGETS, ENCODERS, DATASETS, LABELLED, SMALL),
    *(DEFAULTS["DATA"], DEFAULTS["MODEL"]),
)
QUICK = ["TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "DATA.NUM_WORKERS", "0"]
QUICK += ["DATA.NUM_SHAPES", "16", "DATA.NUM_VAL_SHAPES", "8", "PRINT_FREQ", "1"]


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    """What examples enter into tables is gone afterwards."""
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


def run_example(path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")


def test_the_page_of_keys_is_current() -> None:
    """python -m tools.keys > docs/configuration.md writes it."""
    assert (ROOT / "docs/configuration.md").read_text() == keys.page()


def programs() -> list[Example]:
    """The examples of docs/extending.md that are run by their own name."""
    return [example for example in examples("extending.md") if "pytest" not in example.after]


@pytest.mark.parametrize("example", programs(), ids=lambda example: example.name)
def test_every_example_of_a_part_trains_with_the_command_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Example
) -> None:
    write_examples(tmp_path, "extending.md")
    _, name, *arguments = shlex.split(example.after.replace("\\\n", ""))
    assert name == f"{example.name}.py"
    flags = ["--output", str(tmp_path), "--device", "cpu", "--batch-size", "8"]
    run_example(tmp_path / name, monkeypatch, *flags, *arguments, *QUICK)
    is_labelled = "MODEL.NAME finetune" in example.after
    stage = "finetune" if is_labelled else "simmim_pretrain"
    records = metrics_of(tmp_path, example.name, stage)
    assert [record["loss"] > 0 for record in records if "loss" in record] == [True, True]
    if not is_labelled:
        load_simmim(run_folder(tmp_path, example.name, stage) / "ckpt_epoch_0.pth")
        assert (run_folder(tmp_path, example.name, stage) / "reconstruction.png").exists()


@pytest.mark.slow
def test_the_shared_tests_run_over_the_encoder_of_the_page(tmp_path: Path) -> None:
    write_examples(tmp_path, "extending.md")
    (example,) = (example for example in examples("extending.md") if "pytest" in example.after)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, *shlex.split(example.after)[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) >= 10


def test_every_part_has_an_example() -> None:
    assert len(programs()) == 7


def test_use_from_python_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's numbers are those of longer training: shares and classes are compared by form."""
    flags = ["--output", tmp_path, "--device", "cpu", "--batch-size", "8"]
    assert run_here(monkeypatch, DEMO, *flags, "--opts", *QUICK) == 0
    checkpoint = run_folder(tmp_path, DEMO.stem, "simmim_pretrain") / "ckpt_epoch_0.pth"
    flags += ["--pretrained", checkpoint, "--opts", "MODEL.NAME", "finetune", *QUICK]
    assert run_here(monkeypatch, DEMO, *flags, program=main_finetune) == 0
    best = run_folder(tmp_path, DEMO.stem, "finetune") / "best.pth"
    checkpoint.rename(tmp_path / "pretrained.pth")
    best.rename(tmp_path / "classifier.pth")
    paths = write_examples(tmp_path, "python.md")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for path, example in zip(paths, examples("python.md"), strict=True):
        run_example(path, monkeypatch)
        assert form(capsys.readouterr().out) == form(example.after)
    assert (tmp_path / "reconstruction.png").exists()


def form(text: str) -> str:
    """Text without the numbers and classes that follow from training."""
    text = re.sub(r"\d+\.\d+", "#", text)
    return re.sub(rf"\b({'|'.join(CLASSES)}) *", "CLASS ", text)


def name_of(command: Command) -> str:
    return f"{command.name} {' '.join(command.words)[:60]}"


def can_run(command: Command) -> bool:
    """Whether a command starts a program and needs nothing special."""
    return not (command.needs or command.is_system or command.is_example)


@pytest.mark.parametrize(
    "command",
    [found for page in PAGES for found in (*commands(page), *inline_commands(page))],
    ids=name_of,
)
def test_every_command_of_the_pages_is_understood(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(ROOT)
    require_understood(command, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(can_run, commands(page)))])
def test_the_commands_of_a_page_run_on_small_data_but_those_that_say_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    playground = Playground(tmp_path, monkeypatch)
    for command in commands(page):
        if can_run(command) or command.is_system:
            playground.run(command)


def test_the_tests_of_examples_run_every_command_of_the_page_of_parts() -> None:
    found = [command.words[1] for command in commands("docs/extending.md")]
    names = [f"{example.name}.py" for example in programs()]
    assert sorted(found) == sorted([*names, "-m"])  # -m pytest


def test_a_key_without_a_meaning_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "defaults.py"
    path.write_text('DEFAULTS = dict(\n    DATA=dict(\n        MASK="random",\n    ),\n)\n')
    with pytest.raises(ValueError, match=r"DATA\.MASK has no comment that says what it means"):
        keys.meanings(path)
