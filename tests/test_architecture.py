"""The rules of the layout: who may import whom, and how long files and functions may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data", "models", "utils", "tools")
TOP_LEVEL = {"logger", "lr_scheduler", "optimizer", "main_simmim", "main_finetune"}
# Module or package -> what of the project it may import; `utils.checks` words messages for all,
# `utils.safe_load` reads files for all.
ALLOWED = {
    "models": {"models", "utils.checks", "utils.safe_load"},
    "models.build": {
        "models",
        "utils.checkpoint",
        "utils.checks",
        "utils.config",
        "utils.safe_load",
    },
    "data": {"data", "utils.checks", "utils.distributed", "utils.preemption"},
    "optimizer": {"utils.checks", "utils.sharding"},
    "lr_scheduler": {"utils.checks"},
    "logger": {"utils.streams"},
    "utils.checks": set(),
    "utils.config": {"utils.checks", "utils.defaults", "utils.recipes", "utils.values"},
    "utils.defaults": set(),
    "utils.limits": set(),
    "utils.recipes": {"utils.checks"},
    "utils.values": {"utils.checks", "utils.defaults", "utils.limits"},
    "utils.flags": {"utils.defaults", "utils.values"},
    "utils.arguments": {"utils.checks", "utils.config", "utils.flags", "utils.values"},
    "utils.sharding": set(),
    "utils.compilation": {"utils.checks"},
    "utils.memory": set(),
    "utils.versions": set(),
    "utils.files": {"utils.checks"},
    "utils.checkpoint_names": set(),
    "utils.rendezvous": set(),
    "utils.distributed": {"utils.files", "utils.rendezvous", "utils.sharding"},
    "utils.metrics": {"utils.distributed"},
    "utils.engine": {"utils.distributed", "utils.metrics", "utils.sharding"},
    "utils.evaluation": {"utils.distributed", "utils.sharding"},
    "utils.device": set(),
    "utils.safe_load": {"utils.checkpoint_names", "utils.checks", "utils.files"},
    "utils.sharded_contents": {"utils.checks", "utils.distributed", "utils.files"},
    "utils.sharded_checkpoint": {
        "utils.checkpoint_names",
        "optimizer",
        "utils.checks",
        "utils.distributed",
        "utils.files",
        "utils.sharded_contents",
    },
    "utils.preemption": set(),
    "utils.progress": set(),
    "utils.streams": set(),
    "utils.watch": {"utils.distributed", "utils.preemption"},
    "utils.agreement": {"utils.distributed"},
    "utils.broken": {"utils.distributed"},
    "utils.checkpoint": {
        "optimizer",
        "utils.checkpoint_names",
        "utils.checks",
        "utils.config",
        "utils.files",
        "utils.safe_load",
        "utils.sharded_checkpoint",
        "utils.sharded_contents",
        "utils.sharding",
    },
    "utils.saving": {
        "utils.checkpoint",
        "utils.checkpoint_names",
        "utils.distributed",
        "utils.files",
        "utils.sharded_checkpoint",
        "utils.sharding",
        "utils.watch",
    },
    "utils.resume": {
        "utils.checkpoint",
        "utils.checkpoint_names",
        "utils.checks",
        "utils.distributed",
        "utils.files",
        "utils.progress",
        "utils.sharded_checkpoint",
        "utils.sharding",
    },
}
# Entry points, tools, the configuration's own modules and the builders.
READS_CONFIG = {
    "models.build", "data.build", "optimizer", "lr_scheduler", "main_simmim",
    "main_finetune", "utils.config", "utils.values", "utils.arguments", "utils.run",
    "utils.checkpoint", "utils.resume", "utils.saving", "utils.training", "utils.divergence",
}  # fmt: skip


def sources() -> dict[str, Path]:
    files = [
        *ROOT.glob("*.py"),
        *(f for package in PACKAGES for f in (ROOT / package).glob("*.py")),
    ]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def project_imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in {*PACKAGES, *TOP_LEVEL}}


@pytest.mark.parametrize("name", sorted(sources()))
def test_imports_run_one_way(name: str) -> None:
    allowed = ALLOWED.get(name, ALLOWED.get(name.split(".")[0]))
    if allowed is None:  # entry points, tools, and what joins the parts of a run
        assert name.split(".")[0] in {"main_simmim", "main_finetune", "tools"} or name in {
            "utils",
            "utils.run",
            "utils.training",
            "utils.divergence",
            "utils.program",
        }
        return
    for imported in project_imports(sources()[name]):
        assert any(imported == rule or imported.startswith(f"{rule}.") for rule in allowed), (
            imported
        )


@pytest.mark.parametrize("name", sorted(sources()))
def test_only_builders_and_entry_points_know_the_configuration(name: str) -> None:
    text = sources()[name].read_text()
    if re.search(r"^\s*(from|import) yacs", text, re.MULTILINE) or "cfg." in text:
        assert name in READS_CONFIG or name.startswith("tools.")


@pytest.mark.parametrize("name", sorted(sources()))
def test_files_and_functions_stay_small(name: str) -> None:
    text = sources()[name].read_text()
    longest = 400
    assert text.count("\n") <= longest
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # Arguments, one a line, are no complexity: what counts is the body.
            length = (node.end_lineno or 0) - node.body[0].lineno + 1
            assert length <= 45, node.name
