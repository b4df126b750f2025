"""Models against the reference implementation's numbers (tests/golden/README.md)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lr_scheduler import build_scheduler
from models import build_classifier, build_pretrain_model
from optimizer import build_optimizer
from tests.support.golden_cases import (
    GOLDEN,
    case_input,
    fill_by_rule,
    loss_of_case,
    options,
    read_golden,
    require_published_numbers,
)
from utils.config import get_config


def v2_case(case: dict[str, Any]) -> dict[str, Any]:
    """A case of models_v2, whose keys are an encoder's arguments, in the form of the others."""
    keys = {f"MODEL.SWINV2.{key.upper()}": value for key, value in case["swinv2"].items()}
    config = {
        "MODEL.TYPE": "swinv2",
        "MODEL.NUM_CLASSES": keys.pop("MODEL.SWINV2.NUM_CLASSES", 0),
        "DATA.IMG_SIZE": keys.pop("MODEL.SWINV2.IMG_SIZE"),
        "DATA.MASK_PATCH_SIZE": case["mask_patch_size"],
        "MODEL.SIMMIM.NORM_TARGET.ENABLE": case["norm_target"][0],
        "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE": case["norm_target"][1],
    }
    return case | {"config": config | keys, "folder": "models_v2"}


CASES = {
    name: case | {"folder": "models"} for name, case in read_golden("models/cases.json").items()
}
CASES |= {name: v2_case(case) for name, case in read_golden("models_v2/cases.json").items()}
TRAJECTORIES = read_golden("models/trajectories.json")
PRETRAIN = sorted(name for name in CASES if CASES[name]["stage"] == "pretrain")
FINETUNE = sorted(name for name in CASES if CASES[name]["stage"] == "finetune")


def build(case: dict[str, Any]) -> tuple[Any, Any]:
    cfg = get_config(None, options(case["config"]))
    pretrain = case["stage"] == "pretrain"
    model = build_pretrain_model(cfg) if pretrain else build_classifier(cfg, cfg.MODEL.NUM_CLASSES)
    fill_by_rule(model)
    model = model.double().eval()
    return cfg, model


def gradient_norms(model: nn.Module, names: list[str]) -> np.ndarray:
    parameters = dict(model.named_parameters())
    grads = [parameters[name].grad for name in names]
    norms = [0.0 if grad is None else grad.norm() for grad in grads]
    return np.array([float(norm) for norm in norms])


@pytest.mark.parametrize("name", PRETRAIN + FINETUNE)
def test_parameter_names_and_shapes_are_the_references(name: str) -> None:
    _, model = build(CASES[name])
    expected = {name: tuple(shape) for name, shape in CASES[name]["parameters"]}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_forward_and_gradients_agree_to_1e_9(name: str) -> None:
    cfg, model = build(CASES[name])
    golden = np.load(GOLDEN / f"{CASES[name]['folder']}/{name}.npz")
    image, mask = case_input(
        name,
        2,
        cfg.DATA.IMG_SIZE,
        cfg.DATA.MASK_PATCH_SIZE,
        model.encoder.patch_size,
        torch.float64,
    )
    features = model.encoder.forward_features(image, mask)
    prediction = model.predict(image, mask)
    np.testing.assert_allclose(features.detach().numpy(), golden["features"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        prediction[:, :, ::7, ::5].detach().numpy(), golden["reconstruction"], rtol=1e-9, atol=1e-12
    )
    if "normalized_target" in golden:
        target = model.target(image)[:, :, ::7, ::5]
        np.testing.assert_allclose(target.numpy(), golden["normalized_target"], rtol=1e-9)
    loss = model(image, mask)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-9)
    loss.backward()
    names = [name for name, _ in CASES[name]["parameters"]]
    np.testing.assert_allclose(
        gradient_norms(model, names), golden["grad_norms"], rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("name", FINETUNE)
def test_classifier_logits_and_gradients_agree_to_1e_9(name: str) -> None:
    cfg, model = build(CASES[name])
    golden = np.load(GOLDEN / f"{CASES[name]['folder']}/{name}.npz")
    size, patch = cfg.DATA.IMG_SIZE, model.patch_size
    image, _ = case_input(name, 2, size, 32, patch, torch.float64)
    np.testing.assert_allclose(
        model(image).detach().numpy(), golden["logits"], rtol=1e-9, atol=1e-12
    )
    loss = loss_of_case(cfg, model, "finetune", name, 2)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-9)
    loss.backward()
    names = [name for name, _ in CASES[name]["parameters"]]
    np.testing.assert_allclose(
        gradient_norms(model, names), golden["grad_norms"], rtol=1e-9, atol=1e-14
    )


# Published or known of third parties: millions of parameters with a head of 1000 classes.
@pytest.mark.parametrize(
    ("size", "millions"),
    [
        *(("small", "49.7"), ("base", "87.9"), ("large", "196.7"), ("huge", "658")),
        *(("giant", "1064.6"), ("g", "3.0e3")),
    ],
)
def test_swinv2_sizes_have_the_published_numbers_of_parameters(size: str, millions: str) -> None:
    cfg = get_config(f"configs/_base_/swinv2_{size}.yaml", ["DATA.IMG_SIZE", 224])
    with torch.device("meta"):
        model = build_classifier(cfg, 1000)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    digits = len(millions.split("e")[0].split(".")[-1]) if "." in millions else 0
    unit = 10.0 ** (3 if "e3" in millions else 0)
    assert round(count / unit, digits) * unit == float(millions)


@pytest.mark.parametrize("name", sorted(TRAJECTORIES))
def test_24_updates_follow_the_reference_to_1e_9(name: str) -> None:
    case = TRAJECTORIES[name]
    keys = {"TRAIN.LR_SCHEDULER.NAME": case["scheduler"]}
    if case["scheduler"] == "multistep":
        keys["TRAIN.LR_SCHEDULER.MULTISTEPS"] = case["milestones_epochs"]
    cfg, model = build(case | {"config": case["config"] | keys})
    model.train()
    optimizer = build_optimizer(cfg, model, cfg.TRAIN.BASE_LR)
    scheduler = build_scheduler(cfg, optimizer, case["iterations_per_epoch"])
    rows = []
    for update in range(len(case["rows"])):
        loss = loss_of_case(cfg, model, case["stage"], f"{name}/{update}", case["batch_size"])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.TRAIN.CLIP_GRAD)
        rates = [group["lr"] for group in optimizer.param_groups]
        rows.append([loss.item(), norm.item(), min(rates), max(rates)])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    np.testing.assert_allclose(rows, case["rows"], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep",
        "vit_base__800ep/simmim_pretrain__vit_base__img224__800ep",
        "swin_base__800ep/simmim_finetune__swin_base__img224_window7__800ep",
        "vit_base__800ep/simmim_finetune__vit_base__img224__800ep",
    ],
)
def test_published_sizes_give_the_references_numbers_in_float32(path: str) -> None:
    require_published_numbers(path, torch.device("cpu"), tolerance=1e-5)
