"""Versions of the software that a run computes with."""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import PIL
import timm
import torch
import torchvision

_ROOT = Path(__file__).parent.parent
_FOLDERS = ("data", "models", "utils")  # of the programs; tools and tests have no part in a run


def packages() -> dict[str, str]:
    """Versions of Python and the packages that results depend on."""
    found = {"torch": torch, "torchvision": torchvision, "timm": timm, "numpy": numpy}
    found["pillow"] = PIL
    versions = {name: str(package.__version__) for name, package in found.items()}
    return {"python": platform.python_version()} | versions


def versions() -> str:
    """Versions of Python and the packages that results depend on, and the commit of this code."""
    words = [f"{name} {version}" for name, version in packages().items()]
    return f"{', '.join(words)}, commit {_git_commit()}"


def code() -> dict[str, str]:
    """A digest of each file of the code that a run executes, also of a program from elsewhere.

    A commit would not tell changed files apart, and a copied tree has none. Files that nothing has
    imported, such as an editor's copies, do not count.
    """
    paths = [*_ROOT.glob("*.py"), *(path for name in _FOLDERS for path in _python_in(name))]
    files = {str(path.relative_to(_ROOT)): path for path in paths}
    files = {name: path for name, path in files.items() if _module(name) in sys.modules}
    if started := getattr(sys.modules["__main__"], "__file__", None):
        files.setdefault(Path(started).name, Path(started))
    digests = {name: _digest(path) for name, path in sorted(files.items())}
    return {name: digest for name, digest in digests.items() if digest}


def _python_in(folder: str) -> Iterator[Path]:
    return (_ROOT / folder).rglob("*.py")


def _module(name: str) -> str:
    """The name under which a file is imported."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _digest(path: Path) -> str:
    """8 hex digits for any line ends; empty where a program came from no file or it is gone."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()[:8]


def _git_commit() -> str:
    """Commit of this code, marked "-dirty" where files differ from it; "unknown" without git."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"
