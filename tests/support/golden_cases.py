"""The rules of tests/golden/README.md: weights from names, inputs from case names."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import build_classifier, build_pretrain_model
from utils.config import get_config

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


def loss_of_case(cfg: Any, model: Any, stage: str, name: str, batch_size: int) -> Tensor:
    """Loss of a model of either stage on the input of a case, in the model's own type."""
    parameter = next(model.parameters())
    encoder = getattr(model, "encoder", model)
    cell = cfg.DATA.MASK_PATCH_SIZE if stage == "pretrain" else 32
    size, patch = cfg.DATA.IMG_SIZE, encoder.patch_size
    image, mask = case_input(name, batch_size, size, cell, patch, parameter.dtype)
    image, mask = image.to(parameter.device), mask.to(parameter.device)
    if stage == "pretrain":
        loss: Tensor = model(image, mask)
        return loss
    targets = case_targets(name, batch_size, cfg.MODEL.NUM_CLASSES).to(parameter.device)
    return -(targets * model(image).log_softmax(dim=1)).sum(dim=1).mean()


def require_published_numbers(path: str, device: torch.device, tolerance: float) -> None:
    """AssertionError where a recipe (configs/PATH.yaml) does not give the reference's numbers."""
    name = path.split("/")[1]
    golden = read_golden("full_size/forward.json")[name]
    cfg = get_config(f"configs/{path}.yaml")
    model: Any = build_classifier(cfg, 1000) if "logits" in golden else build_pretrain_model(cfg)
    fill_by_rule(model)
    assert sum(p.numel() for p in model.parameters()) == golden["num_parameters"]
    model = model.to(device).eval()
    patch = getattr(model, "encoder", model).patch_size
    image, mask = (
        part.to(device) for part in case_input(name, 1, cfg.DATA.IMG_SIZE, 32, patch, torch.float32)
    )
    with torch.no_grad():
        if "logits" in golden:
            _require_statistics(model(image), golden["logits"])
            return
        features = model.encoder.forward_features(image, mask)
        _require_statistics(features, golden["features"])
        _require_statistics(model.decoder(features), golden["reconstruction"])
        assert model(image, mask).item() == pytest.approx(golden["loss"], rel=tolerance)


def _require_statistics(values: Tensor, statistics: dict[str, Any]) -> None:
    flat = values.flatten().cpu().numpy()
    np.testing.assert_allclose(flat[:8], statistics["first"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(flat[-8:], statistics["last"], rtol=1e-3, atol=1e-3)
    assert np.linalg.norm(flat) == pytest.approx(statistics["l2"], rel=1e-3)
