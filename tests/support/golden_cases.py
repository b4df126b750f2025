"""The rules of tests/golden/README.md: weights from names, inputs from case names."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[1] / "golden"


def read_golden(name: str) -> Any:
    """A JSON file below tests/golden."""
    return json.loads((GOLDEN / name).read_text())


def random_state(name: str) -> np.random.RandomState:
    """The generator that belongs to a name."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def fill_by_rule(model: nn.Module) -> None:
    """Fill every parameter from its name alone."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rsplit(".", 1)[-1]
            base = 0.0
            if last in ("gamma_1", "gamma_2"):
                base = 0.1
            elif last == "logit_scale":
                base = math.log(10)
            elif last == "weight" and parameter.ndim == 1:
                base = 1.0
            values = base + 0.02 * random_state(name).standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values))


def case_input(
    name: str, batch_size: int, size: int, cell: int, patch: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Image (B, 3, size, size) and mask (B, size/patch, size/patch) of a case."""
    random = random_state(name)
    image = random.standard_normal((batch_size, 3, size, size))
    side = size // cell
    masks = np.zeros((batch_size, side * side), dtype=bool)
    for mask in masks:
        mask[random.permutation(side * side)[: math.ceil(0.6 * side * side)]] = True
    cells = masks.reshape(batch_size, side, side)
    mask = cells.repeat(cell // patch, axis=1).repeat(cell // patch, axis=2)
    return torch.from_numpy(image).to(dtype), torch.from_numpy(mask)


def case_targets(name: str, batch_size: int, num_classes: int) -> Tensor:
    """Soft targets (B, classes) of a fine-tuning case, float64."""
    targets = np.abs(random_state(f"{name}/targets").standard_normal((batch_size, num_classes)))
    return torch.from_numpy(targets / targets.sum(1, keepdims=True))


def options(config: dict[str, Any]) -> list[Any]:
    """A golden config, {KEY: value}, as the flat list that get_config takes."""
    return [item for pair in config.items() for item in pair]
