"""Versions of the software that a run computes with."""

import platform
import subprocess
from pathlib import Path

import numpy
import PIL
import timm
import torch
import torchvision


def versions() -> str:
    """Versions of Python and the packages that results depend on, and the commit of this code."""
    packages = {"torch": torch, "torchvision": torchvision, "timm": timm, "numpy": numpy}
    packages["pillow"] = PIL
    versions = [f"{name} {package.__version__}" for name, package in packages.items()]
    return f"python {platform.python_version()}, {', '.join(versions)}, commit {_git_commit()}"


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
