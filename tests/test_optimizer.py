"""Parameter groups of the published recipes, and which optimizer is built."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models import build_classifier, build_pretrain_model
from optimizer import build_optimizer, expected_moments, parameter_groups, scale_lr
from tests.support.golden_cases import read_golden
from utils.config import get_config

GROUPS = read_golden("full_size/param_groups.json")
MANIFEST = read_golden("full_size/state_dict_manifest.json")
MANIFEST |= read_golden("full_size/state_dict_manifest_swinv2.json")
V2_CASES = read_golden("models_v2/cases.json")
RECOMPUTED = ("relative_position_index", "attn_mask")
RECIPES = {path.stem: path for path in Path("configs").rglob("*.yaml")}


def published(name: str) -> tuple[Any, Any]:
    """Config and model (without memory) of a published recipe."""
    cfg = get_config(RECIPES[name])
    with torch.device("meta"):
        if "pretrain" in name:
            return cfg, build_pretrain_model(cfg)
        return cfg, build_classifier(cfg, 1000)


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_published_recipes_have_the_references_names_and_shapes(name: str) -> None:
    _, model = published(name)
    expected = {
        key: tuple(shape)
        for key, (shape, _) in MANIFEST[name].items()
        if not key.endswith(RECOMPUTED)
    }
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_published_recipes_have_the_references_groups(name: str) -> None:
    cfg, model = published(name)
    groups = parameter_groups(
        model, cfg.TRAIN.BASE_LR, cfg.TRAIN.WEIGHT_DECAY, cfg.TRAIN.LAYER_DECAY, "published"
    )
    assert len(groups) == len(GROUPS[name])
    expected = {
        frozenset(group["params"]): (group["lr"], group["weight_decay"]) for group in GROUPS[name]
    }
    found = {frozenset(group["names"]): (group["lr"], group["weight_decay"]) for group in groups}
    assert found.keys() == expected.keys()
    for names, numbers in found.items():
        assert numbers == pytest.approx(expected[names], rel=1e-12)


@pytest.mark.parametrize("name", sorted(V2_CASES))
def test_swinv2_decays_what_the_reference_does(name: str) -> None:
    """The reference looks for the listed names and parts of names, with their prefix."""
    case = V2_CASES[name]
    recipe = f"sim{name.split('_')[1].replace('pre', 'mim_pre').replace('fine', 'mim_fine')}"
    (path,) = Path("configs/swinv2_base__800ep").glob(f"{recipe}__*.yaml")
    _, model = published(path.stem)
    groups = parameter_groups(model, 1.0, 0.05, 1.0, "published")
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert decayed == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and not name.endswith(".bias")
        and name not in case["no_weight_decay"]
        and not any(word in name for word in case["no_weight_decay_keywords"])
    }


@pytest.mark.parametrize("block", ["swin_base", "swinv2_base", "vit_base"])
def test_the_intended_exclusion_keeps_position_tables_and_tokens_from_decay(block: str) -> None:
    with torch.device("meta"):
        model = build_pretrain_model(get_config(f"configs/_base_/{block}.yaml"))
    decayed = {
        kind: {
            name
            for group in parameter_groups(model, 1.0, 0.05, 1.0, kind)
            for name in group["names"]
            if group["weight_decay"]
        }
        for kind in ("published", "intended")
    }
    spared = decayed["published"] - decayed["intended"]
    assert decayed["intended"] < decayed["published"]
    positions = ("bias_table", "mask_token", "cpb_mlp", "logit_scale")
    assert all(any(part in name for part in positions) for name in spared)
    expected = "cpb_mlp.0.weight" if block.startswith("swinv2") else "position_bias_table"
    assert any(name.endswith(expected) for name in spared)


def test_learning_rates_are_scaled_from_512_images() -> None:
    assert scale_lr(2e-4, 2048) == pytest.approx(8e-4)


def smallest_model() -> Any:
    """One layer that answers what the optimizer's groups ask."""
    model: Any = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.num_layers, model.layer_of, model.no_weight_decay = 1, lambda _: 0, lambda _: False
    return model


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_keeps_the_moments_that_are_expected_of_its_kind(name: str) -> None:
    model = smallest_model()
    optimizer = build_optimizer(get_config(None, ["TRAIN.OPTIMIZER.NAME", name]), model, 0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for parameter in model.parameters():
        assert frozenset(optimizer.state[parameter]) == expected_moments(optimizer)


def test_adamw_is_the_default_and_sgd_a_choice() -> None:
    model = smallest_model()
    assert isinstance(build_optimizer(get_config(), model, 0.1), torch.optim.AdamW)
    sgd = build_optimizer(get_config(None, ["TRAIN.OPTIMIZER.NAME", "sgd"]), model, 0.1)
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.9
    with pytest.raises(ValueError, match="choices: adamw, sgd"):
        build_optimizer(get_config(None, ["TRAIN.OPTIMIZER.NAME", "lion"]), model, 0.1)
