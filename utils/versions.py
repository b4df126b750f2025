"""Versions of the software that a run computes with."""

import hashlib
import platform
import subprocess
import sys
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

    A commit would not tell changed files apart, and a copied tree has none.
    """
    files = {path.name: path for path in _ROOT.glob("*.py")}
    for folder in _FOLDERS:
        paths = (_ROOT / folder).rglob("*.py")
        files |= {str(path.relative_to(_ROOT)): path for path in paths}
    if started := getattr(sys.modules["__main__"], "__file__", None):
        files.setdefault(Path(started).name, Path(started))
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        for name, path in sorted(files.items())
    }


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
