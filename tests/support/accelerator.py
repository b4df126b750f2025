"""The device of tests/gpu: the first CUDA GPU, or what SIMMIM_TEST_DEVICE names."""

import os

import torch

VARIABLE = "SIMMIM_TEST_DEVICE"


def tested_device() -> torch.device:
    """The device on which tests/gpu run; on the CPU they show that they test what they say."""
    wanted = os.environ.get(VARIABLE, "cuda")
    if wanted not in ("cuda", "cpu"):
        raise ValueError(f"{VARIABLE} is {wanted}, expected cuda or cpu")
    return torch.device("cuda", 0) if wanted == "cuda" else torch.device("cpu")


def why_missing() -> str:
    """Words for a device that is not there; empty where it is."""
    if tested_device().type == "cpu" or torch.cuda.is_available():
        return ""
    built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
    return f"torch {torch.__version__} finds no CUDA GPU here (it {built})"
