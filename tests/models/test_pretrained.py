"""Starting weights: the reference's numbers, every origin, and no silent mismatch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import build_classifier, build_pretrain_model, load_pretrained
from models.position_bias import resize_position_bias
from models.pretrained import head_classes
from tests.golden_cases import GOLDEN, case_input, fill_by_rule, options, read_golden
from utils.config import get_config
from utils.safe_load import model_weights, read_checkpoint

EXPECTED = read_golden("checkpoints/expected.json")
TABLES = np.load(GOLDEN / "relative_position_bias_interpolation.npz")
KINDS = sorted(EXPECTED)


def classifier(kind: str, *opts: Any, num_classes: int = 11) -> Any:
    cfg = get_config(None, [*options(EXPECTED[kind]["finetune_config"]), *opts])
    model = build_classifier(cfg, num_classes).eval()
    fill_by_rule(model)
    return model


def logits(kind: str, model: Any) -> np.ndarray:
    size = EXPECTED[kind]["finetune_config"]["DATA.IMG_SIZE"]
    image, _ = case_input(f"{kind}/finetune", 2, size, 32, model.patch_size, torch.float32)
    with torch.no_grad():
        return np.asarray(model(image))


def golden_file(name: str) -> Path:
    return GOLDEN / f"checkpoints/{name}.pth"


@pytest.mark.parametrize("name", sorted(key[:-6] for key in TABLES if key.endswith("_input")))
def test_position_biases_are_resized_as_the_reference_does(name: str) -> None:
    expected = TABLES[f"{name}_output"]
    found = resize_position_bias(torch.from_numpy(TABLES[f"{name}_input"]), len(expected))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_a_table_of_the_same_size_is_untouched_and_a_larger_one_shrinks() -> None:
    table = torch.randn(169, 4)
    assert resize_position_bias(table, 169) is table
    assert resize_position_bias(table, 121).shape == (121, 4)


@pytest.mark.parametrize(("rows", "new_rows"), [(120, 169), (9, 169), (172, 121), (169, 170)])
def test_tables_of_no_window_are_refused(rows: int, new_rows: int) -> None:
    with pytest.raises(ValueError, match=r"a table of \d+ rows"):
        resize_position_bias(torch.zeros(rows, 2), new_rows)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_after_loading_a_pretrained_file_are_the_references(kind: str) -> None:
    model = classifier(kind)
    report = load_pretrained(model, golden_file(f"{kind}_pretrain"))
    expected = EXPECTED[kind]["logits_after_load_pretrained"]
    np.testing.assert_allclose(logits(kind, model), expected, rtol=1e-5, atol=1e-6)
    assert set(report.loaded) | set(report.resized) | set(report.initialized) == set(
        model.state_dict()
    )
    assert all(name.endswith("relative_position_bias_table") for name in report.resized)
    pooling = {"fc_norm.weight", "fc_norm.bias"} if kind == "vit" else set()
    assert set(report.initialized) == {"head.weight", "head.bias"} | pooling
    norm = {"norm.weight", "norm.bias"} if kind == "vit" else set()
    assert set(report.left_over) == {"mask_token", "decoder.0.weight", "decoder.0.bias"} | norm
    assert str(report).startswith(f"loaded: {len(report.loaded)}; resized: {len(report.resized)} (")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["whole", "model", "bare", "safetensors"])
def test_a_finetuned_file_loads_from_every_format(tmp_path: Path, kind: str, shape: str) -> None:
    path = golden_file(f"{kind}_finetune")
    weights = {key: value.clone() for key, value in read_checkpoint(path)["model"].items()}
    if shape == "safetensors":
        save_file(weights, path := tmp_path / "x.safetensors")
    elif shape != "whole":
        torch.save({"model": weights} if shape == "model" else weights, path := tmp_path / "x.pth")
    model = classifier(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = load_pretrained(model, path)
    assert not report.resized + report.initialized + report.left_over
    expected = EXPECTED[kind]["logits_after_load_pretrained"]
    np.testing.assert_allclose(logits(kind, model), expected, rtol=1e-5, atol=1e-6)


def test_a_head_of_another_size_is_left_out_and_reported() -> None:
    model = classifier("swin", num_classes=5)
    before = model.head.weight.clone()
    report = load_pretrained(model, golden_file("swin_finetune"))
    assert set(report.left_over) == set(report.initialized) == {"head.weight", "head.bias"}
    assert torch.equal(model.head.weight, before)
    assert str(report).endswith("the head has another number of classes and starts anew")


def test_a_shared_position_bias_reaches_every_block() -> None:
    model = classifier("vit", "DATA.IMG_SIZE", 96)
    load_pretrained(model, golden_file("vit_pretrain"))
    stored = model_weights(read_checkpoint(golden_file("vit_pretrain")), "x")
    shared = stored["encoder.rel_pos_bias.relative_position_bias_table"]
    assert len(model.blocks) == 3
    for block in model.blocks:
        assert torch.equal(block.attn.relative_position_bias_table, shared)


def test_a_vit_file_without_position_bias_loads_too(tmp_path: Path) -> None:
    stored = model_weights(read_checkpoint(golden_file("vit_pretrain")), "x")
    without = {key: value for key, value in stored.items() if "rel_pos_bias" not in key}
    torch.save(without, tmp_path / "x.pth")
    report = load_pretrained(classifier("vit"), tmp_path / "x.pth")
    assert sum("bias_table" in name for name in report.initialized) == 3


def test_this_projects_pretraining_model_is_a_start(tmp_path: Path) -> None:
    cfg = get_config(None, options(EXPECTED["swin"]["pretrain_config"]))
    pretrained: Any = build_pretrain_model(cfg)
    torch.save({"model": pretrained.state_dict(), "epoch": 3}, tmp_path / "x.pth")
    model = classifier("swin")
    load_pretrained(model, tmp_path / "x.pth")
    weight = pretrained.encoder.state_dict()["layers.2.blocks.1.mlp.fc1.weight"]
    assert torch.equal(model.state_dict()["layers.2.blocks.1.mlp.fc1.weight"], weight)


def changed(change: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """The pre-trained golden Swin's weights with some replaced or, by None, removed."""
    weights = model_weights(read_checkpoint(golden_file("swin_pretrain")), "x") | change
    return {name: value for name, value in weights.items() if value is not None}


TABLE = "encoder.layers.0.blocks.0.attn.relative_position_bias_table"
WRONG: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "a block is missing": (
        {"encoder.layers.1.blocks.0.mlp.fc1.weight": None},
        r"layers\.1\.blocks\.0\.mlp\.fc1\.weight is missing",
    ),
    "one table is missing": ({TABLE: None}, "relative_position_bias_table is missing"),
    "something unknown": ({"encoder.extra": torch.ones(1)}, "extra is not in the model"),
    "unknown beside the encoder": ({"teacher.x": torch.ones(1)}, r"teacher\.x is not in the model"),
    "another width": (
        {"encoder.patch_embed.norm.weight": torch.ones(9)},
        r"norm\.weight has shape \(9,\), the model \(8,\)",
    ),
    "a table of no window": ({TABLE: torch.ones(120, 1)}, "120 rows belongs to no square window"),
    "a table of other heads": ({TABLE: torch.ones(121, 2)}, r"\(169, 2\), the model \(169, 1\)"),
    "a table that is none": ({TABLE: torch.ones(121)}, r"\(121,\), the model \(169, 1\)"),
    "a number for a table": ({TABLE: torch.tensor(1.0)}, r"has shape \(\), the model \(169, 1\)"),
    "a norm too many": ({"encoder.fc_norm.weight": torch.ones(1)}, "fc_norm.weight is not in"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_other_difference_is_an_error_and_changes_nothing(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    torch.save({"model": changed(change)}, tmp_path / "x.pth")
    model = classifier("swin")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(model, tmp_path / "x.pth")
    assert "x.pth" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_architecture_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit the model: cls_token is missing"):
        load_pretrained(classifier("vit"), golden_file("swin_pretrain"))
    with pytest.raises(ValueError, match="is not in the model"):
        load_pretrained(classifier("vit", "MODEL.VIT.USE_RPB", False), golden_file("vit_pretrain"))


def test_classes_come_from_the_file_or_are_numbers() -> None:
    weights = {"head.weight": torch.ones(2, 4)}
    assert head_classes({"classes": ["cat", "dog"]}, weights, "x") == ["cat", "dog"]
    assert head_classes({"classes": []}, weights, "x") == ["0", "1"]
    assert head_classes({}, weights, "x") == ["0", "1"]
    with pytest.raises(ValueError, match="no classification head"):
        head_classes({}, {"encoder.x": torch.ones(1)}, "x")
    with pytest.raises(ValueError, match="no classification head"):
        head_classes({}, {"head.weight": torch.tensor(1.0)}, "x")
