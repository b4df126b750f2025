"""What a run's numbers were computed with."""

import platform
import subprocess
from pathlib import Path

import numpy
import timm
import torch
import torchvision


def versions() -> str:
    """Python, the packages that numbers depend on, and the commit of this code."""
    packages = {"torch": torch, "torchvision": torchvision, "timm": timm, "numpy": numpy}
    versions = [f"{name} {package.__version__}" for name, package in packages.items()]
    return f"python {platform.python_version()}, {', '.join(versions)}, commit {_git_commit()}"


def _git_commit() -> str:
    """Commit of this code, with a mark where files differ from it."""
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
