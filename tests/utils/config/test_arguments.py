"""The command line as a user meets it: help, mistakes and what they suggest, in real processes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.small_runs import ROOT, write_config, write_finetune_config
from utils.config import get_config, to_plain
from utils.config.arguments import (
    Command,
    cores_of_a_process,
    make_parser,
    read_command,
    read_program,
)
from utils.config.flags import PROGRAMS

TOOLS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "tools").rglob("*.py")
    if "def read_arguments" in path.read_text()
)
PRETRAIN = "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml"
FINETUNE = "configs/swin_base__100ep/simmim_finetune__swin_base__img192_window6__100ep.yaml"


def program(*command: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, which says what it imports on standard error."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def imported(result: subprocess.CompletedProcess[str]) -> set[str]:
    return set(re.findall(r"^import time:.*\| +(\w+)$", result.stderr, re.MULTILINE))


def message(result: subprocess.CompletedProcess[str]) -> str:
    lines = result.stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("import time:"))


def of_simmim(*arguments: str) -> Command:
    parser = make_parser("main_simmim.py", "", PROGRAMS["main_simmim.py"][1])
    return read_command(parser.parse_args(list(arguments)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PROGRAMS, *TOOLS])
def test_help_fits_a_narrow_terminal_and_needs_no_torch(name: str) -> None:
    command = [name] if name.endswith(".py") else ["-m", name]
    result = program(*command, "--help", COLUMNS="60")
    assert result.returncode == 0
    assert "yaml" in imported(result)
    assert not imported(result) & {"torch", "timm", "torchvision", "numpy"}
    assert result.stdout.startswith(f"usage: python {' '.join(command)}")
    too_long = [line for line in result.stdout.splitlines() if len(line) > 60]
    assert not [line for line in too_long if " " in line.strip()[:40]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("main_simmim.py", [], "arguments are required: --cfg"),
        ("main_simmim.py", ["--epochs", "3"], "did you mean --opts TRAIN.EPOCHS 3?"),
        ("main_simmim.py", ["--cfg", "nowhere.yaml"], "nowhere.yaml does not exist"),
        ("main_simmim.py", ["--cfg", "{broken}"], r"not valid YAML: .* \(line 2, column \d\)"),
        ("main_simmim.py", ["--cfg", PRETRAIN, "--opts", "SEDE", "1"], "did you mean SEED?"),
        ("main_simmim.py", ["--cfg", FINETUNE], f"python main_finetune.py --cfg {FINETUNE}"),
        ("main_finetune.py", ["--cfg", PRETRAIN], f"python main_simmim.py --cfg {PRETRAIN}"),
        (
            "main_simmim.py",
            ["--cfg", PRETRAIN, "--pretrained", "x"],
            "--pretrained; it is a flag of main_finetune.py",
        ),
    ],
)
def test_mistakes_are_told_in_one_line_before_torch_is_imported(
    tmp_path: Path, name: str, arguments: list[str], expected: str
) -> None:
    (tmp_path / "broken.yaml").write_text("SEED: 1\nA: : 1\n")
    filled = [argument.format(broken=tmp_path / "broken.yaml") for argument in arguments]
    result = program(name, *filled)
    assert result.returncode == 2
    assert re.fullmatch(rf"error: .*{expected}.*\n".replace("?.", r"\?."), message(result))
    assert "torch" not in imported(result)


@pytest.mark.slow
def test_the_resolved_configuration_is_printed_without_torch() -> None:
    arguments = ["--cfg", FINETUNE, "--batch-size", "4", "--opts", "DATA.NUM_WORKERS", "3"]
    result = program("main_finetune.py", *arguments, "--print-config")
    assert result.returncode == 0
    assert "torch" not in imported(result)
    opts = ["DATA.BATCH_SIZE", 4, "DATA.NUM_WORKERS", 3]
    assert yaml.safe_load(result.stdout) == to_plain(get_config(FINETUNE, opts))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tga", "x"], "unknown flag --tga; did you mean --tag?"),
        (["--batchsize", "8"], "did you mean --batch-size?"),
        (["--DATA.BATCH_SIZE", "8"], "did you mean --batch-size 8?"),
        (["--mask-ratio=0.5"], "did you mean --opts DATA.MASK_RATIO 0.5?"),
        (["--throughput"], "it is a flag of main_finetune.py"),
        (["--nonsense"], "python main_simmim.py --help lists the flags"),
        (["--opts", "BATCH_SIZE", "8"], "did you mean DATA.BATCH_SIZE?"),
        (
            ["--opts", "DEPTHS", "[2]"],
            "MODEL.SWIN.DEPTHS, MODEL.SWINV2.DEPTHS or MODEL.CONVNEXT.DEPTHS?",
        ),
        (["--opts", "MODEL.SWIN.DEPTHS", "[2,", "4]"], '--opts MODEL.SWIN.DEPTHS "[2, 4]"'),
        (["--opts", "TRAIN.BASE_LR", "-1e999"], "TRAIN.BASE_LR is -inf, expected at least 0"),
        (["--opts", "SEED", "-1", "TAG", "x"], "SEED is -1, expected at least 0"),
        (["--opts", "SEED"], "'SEED' has no value"),
    ],
)
def test_a_mistake_suggests_what_may_have_been_meant(arguments: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        of_simmim("--cfg", PRETRAIN, *arguments)


def test_options_may_stand_anywhere_and_more_than_once() -> None:
    opts = ("--opts", "TRAIN.BASE_LR", "1e-3", "--tag", "x", "--opts", "SEED", "7")
    cfg = of_simmim(*opts, "--cfg", PRETRAIN, "--local-rank=1").cfg
    assert (cfg.TRAIN.BASE_LR, cfg.TAG, cfg.SEED) == (1e-3, "x", 7)


def test_a_recipe_that_says_nothing_of_its_stage_serves_both_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("SEED: 3\n")
    for name in PROGRAMS:
        monkeypatch.setattr(sys, "argv", [name, "--cfg", str(path)])
        assert read_program(name, "").cfg.SEED == 3
    for name, other in (
        ("main_simmim.py", write_finetune_config(tmp_path)),
        ("main_finetune.py", write_config(tmp_path)),
    ):
        monkeypatch.setattr(sys, "argv", [name, "--cfg", str(other)])
        with pytest.raises(ValueError, match=r"says its MODEL\.NAME"):
            read_program(name, "")


def test_loader_workers_of_a_recipe_do_not_exceed_the_cores_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert cores_of_a_process() == 1
    command = of_simmim("--cfg", PRETRAIN)
    assert command.cfg.DATA.NUM_WORKERS == 1
    assert command.summary[1].startswith("1 loader worker(s) instead of 8: this process has 1 core")
    command = of_simmim("--cfg", PRETRAIN, "--opts", "DATA.NUM_WORKERS", "8")
    assert command.cfg.DATA.NUM_WORKERS == 8
    assert command.summary == (f"recipe {PRETRAIN}",)
