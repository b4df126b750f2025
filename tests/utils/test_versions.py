"""What counts as the code of a run."""

import shutil
import sys
from pathlib import Path

import pytest

import data.build
import utils.versions as versions
from tests.support.small_runs import ROOT


def copied(folder: Path) -> Path:
    shutil.copytree(ROOT / "data", folder / "data", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_files_that_nothing_imports_are_no_code_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.build.__name__ in sys.modules
    monkeypatch.setattr(versions, "_ROOT", copied(tmp_path))
    before = versions.code()
    assert {"data/build.py", "data/__init__.py"} < before.keys()
    (tmp_path / "data" / ".#build.py").symlink_to("user@host.123")  # an editor's lock
    (tmp_path / "data" / "build (copy).py").write_text("another\n")
    (tmp_path / "notes_of_mine.py").write_text("mine\n")
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / ".ipynb_checkpoints" / "build-checkpoint.py").write_text("old\n")
    assert versions.code() == before
    file = tmp_path / "data" / "build.py"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert versions.code() == before
    file.write_text("another\n")
    assert versions.code() != before


def test_a_program_that_is_in_no_file_has_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    assert "<stdin>" not in versions.code()
