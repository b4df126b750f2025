"""Starting weights: the reference's numbers, every origin, and no silent mismatch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import build_classifier, build_pretrain_model, load_classifier, load_pretrained
from models.origin import image_aspect, swinv2_window
from models.position_bias import (
    relative_coordinates,
    resize_position_bias,
    resize_tables,
    window_of_coordinates,
    window_of_table,
)
from models.pretrained import class_names, head_size
from tests.support.golden_cases import GOLDEN, case_input, fill_by_rule, options, read_golden
from utils.checkpoints.reading import model_weights, read_checkpoint
from utils.checkpoints.state import restore_model
from utils.config import get_config

EXPECTED = read_golden("checkpoints/expected.json")
TABLES = np.load(GOLDEN / "relative_position_bias_interpolation.npz")
KINDS = sorted(EXPECTED)
VIT = get_config(None, options(EXPECTED["vit"]["finetune_config"]))


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
    expected, table = TABLES[f"{name}_output"], torch.from_numpy(TABLES[f"{name}_input"])
    num_kept = 3 if name.startswith("vit") else 0
    source, target = (window_of_table(len(rows) - num_kept, 1.0) for rows in (table, expected))
    found = resize_position_bias(table, source, target)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_position_biases_of_windows_that_are_not_square_are_resized() -> None:
    table = torch.randn(11 * 7, 4)
    resized = resize_position_bias(table, (6, 4), (12, 8))
    assert resized.shape == (23 * 15, 4)
    transposed = table.view(11, 7, 4).transpose(0, 1).reshape(-1, 4)
    expected = resize_position_bias(transposed, (4, 6), (8, 12)).view(15, 23, 4).transpose(0, 1)
    torch.testing.assert_close(resized, expected.reshape(-1, 4))
    assert torch.equal(resized.view(23, 15, 4)[11, 7], table.view(11, 7, 4)[5, 3])  # the centre


@pytest.mark.parametrize(
    ("num_offsets", "aspect", "window"),
    [(169, 1.0, (7, 7)), (11 * 7, 2.0, (6, 4)), (11 * 7, 0.5, (4, 6)), (225, 2.5, (13, 5))],
)
def test_a_position_table_belongs_to_the_window_nearest_to_the_shape_of_the_image(
    num_offsets: int, aspect: float, window: tuple[int, int]
) -> None:
    assert window_of_table(num_offsets, aspect) == window


@pytest.mark.parametrize(("num_offsets", "aspect"), [(120, 1.0), (-3, 1.0), (77, 1.0), (120, 2.0)])
def test_position_tables_that_fit_no_window_are_refused(num_offsets: int, aspect: float) -> None:
    with pytest.raises(ValueError, match=r"a table of -?\d+ relative positions"):
        window_of_table(num_offsets, aspect)


def test_a_position_table_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="too few to resize"):
        resize_position_bias(torch.zeros(9, 2), (2, 2), (7, 7))


@pytest.mark.parametrize("window", [(12, 12), (6, 14), (1, 1), (1, 4), (32, 32)])
@pytest.mark.parametrize("pretrained", [(12, 12), (6, 6), (7, 21)])
def test_the_window_of_relative_coordinates_is_recognized(
    window: tuple[int, int], pretrained: tuple[int, int]
) -> None:
    found = window_of_coordinates(relative_coordinates(window, pretrained))
    told = [side for side, size in zip(found, window, strict=True) if size > 1]
    assert told == [side for side, size in zip(pretrained, window, strict=True) if size > 1]


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


def test_a_pretraining_model_of_this_project_starts_a_classifier(tmp_path: Path) -> None:
    cfg = get_config(None, options(EXPECTED["swin"]["pretrain_config"]))
    pretrained: Any = build_pretrain_model(cfg)
    torch.save({"model": pretrained.state_dict(), "epoch": 3}, tmp_path / "x.pth")
    model = classifier("swin")
    load_pretrained(model, tmp_path / "x.pth")
    weight = pretrained.encoder.state_dict()["layers.2.blocks.1.mlp.fc1.weight"]
    assert torch.equal(model.state_dict()["layers.2.blocks.1.mlp.fc1.weight"], weight)


def swinv2(size: int, window: int, *opts: Any, pretrain: bool = False) -> Any:
    """A Swin V2 of three stages with maps of size / 2, / 4 and / 8."""
    keys = ["MODEL.TYPE", "swinv2", "MODEL.SWINV2.EMBED_DIM", 8, "MODEL.SWINV2.PATCH_SIZE", 2]
    keys += ["MODEL.SWINV2.DEPTHS", [1, 1, 1], "MODEL.SWINV2.NUM_HEADS", [1, 1, 1]]
    keys += ["MODEL.SWINV2.WINDOW_SIZE", window, "DATA.IMG_SIZE", size]
    cfg = get_config(None, [*keys, "DATA.MASK_PATCH_SIZE", 8, *opts])
    torch.manual_seed(0)
    return build_pretrain_model(cfg) if pretrain else build_classifier(cfg, 3)


def coordinates(model: Any) -> list[torch.Tensor]:
    return [block.attn.relative_coords_table for block in model.blocks]


def test_swinv2_counts_positions_in_the_windows_of_the_file(tmp_path: Path) -> None:
    torch.save({"model": swinv2(48, 12, pretrain=True).state_dict()}, tmp_path / "x.pth")
    model = swinv2(56, 14)
    report = load_pretrained(model, tmp_path / "x.pth")
    assert str(report).endswith("were learned in windows of 12x12, 12x12, 6x6, says the file")
    assert not report.resized
    configured = swinv2(56, 14, "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", [12, 12, 6])
    for found, expected in zip(coordinates(model), coordinates(configured), strict=True):
        assert torch.equal(found, expected)
    torch.save({"model": model.state_dict()}, tmp_path / "finetuned.pth")
    larger = swinv2(96, 24)  # fine-tuned once more: the windows of pre-training stay
    load_pretrained(larger, tmp_path / "finetuned.pth")
    configured = swinv2(96, 24, "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", [12, 12, 6])
    for found, expected in zip(coordinates(larger), coordinates(configured), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("tells", [True, False])
def test_swinv2_files_without_coordinates_and_with_older_names_are_loaded(
    tmp_path: Path, tells: bool
) -> None:
    pretrained = swinv2(48, 12, pretrain=True)
    weights = {
        name.replace("cpb_mlp", "rpe_mlp"): value
        for name, value in pretrained.state_dict().items()
        if "coords_table" not in name
    }
    keys = {"WINDOW_SIZE": 12, "PATCH_SIZE": 2, "PRETRAINED_WINDOW_SIZES": [0, 0, 0]}
    config = {"DATA": {"IMG_SIZE": 48}, "MODEL": {"SWINV2": keys}} if tells else {}
    torch.save({"model": weights, "config": config}, tmp_path / "x.pth")
    model = swinv2(56, 14)
    before = coordinates(model)
    load_pretrained(model, tmp_path / "x.pth")
    assert torch.equal(model.blocks[1].attn.cpb_mlp[0].weight, weights_of(pretrained, 1))
    configured = swinv2(56, 14, "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", [12, 12, 6])
    wanted = coordinates(configured) if tells else before
    for found, expected in zip(coordinates(model), wanted, strict=True):
        assert torch.equal(found, expected)


def test_an_evaluated_swinv2_keeps_the_coordinates_of_its_file(tmp_path: Path) -> None:
    finetuned = swinv2(56, 14, "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", [12, 12, 6])
    model = swinv2(56, 14)  # a configuration that does not tell
    restore_model(finetuned.state_dict(), model, tmp_path)
    image = torch.randn(2, 3, 56, 56)
    assert torch.equal(model.eval()(image), finetuned.eval()(image))
    without = {n: v for n, v in finetuned.state_dict().items() if "coords_table" not in n}
    configured = swinv2(56, 14, "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", [12, 12, 6])
    restore_model(without, configured, tmp_path)
    assert torch.equal(configured.eval()(image), finetuned(image))


def weights_of(model: Any, block: int) -> torch.Tensor:
    found: torch.Tensor = model.encoder.blocks[block].attn.cpb_mlp[0].weight
    return found


def test_broken_coordinates_are_one_clear_error(tmp_path: Path) -> None:
    state = swinv2(48, 12, pretrain=True).state_dict()
    name = "encoder.layers.1.blocks.0.attn.relative_coords_table"
    torch.save(state | {name: torch.zeros(3, 3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth.*coordinates of shape \(3, 3\), expected"):
        load_pretrained(swinv2(56, 14), tmp_path / "x.pth")
    for broken in (torch.zeros(0, 3, 3, 2), torch.zeros(3, 3, 3, 2)):
        with pytest.raises(ValueError, match="relative coordinates of shape"):
            window_of_coordinates(broken)
    with pytest.raises(ValueError, match="relative coordinates end at 1e-30"):
        window_of_coordinates(torch.full((1, 3, 3, 2), 1e-30))


def test_an_empty_position_table_that_claims_many_positions_is_refused_at_once() -> None:
    model = classifier("swin")
    name = next(name for name in model.state_dict() if name.endswith("position_bias_table"))
    weights = dict(model.state_dict()) | {name: torch.ones(2**40 - 1, 0)}
    assert resize_tables(weights, model, None) == []


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = classifier("vit")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["cls_token"][..., 0] = float("nan")
    torch.save({"model": weights}, path := tmp_path / "x.pth")
    for read in (lambda: load_pretrained(model, path), lambda: load_classifier(path, VIT)):
        with pytest.raises(ValueError, match=r"numbers that are not finite \(cls_token\)"):
            read()


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_of_another_type_of_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    model = classifier("vit")
    weights = {name: value.to(dtype) for name, value in model.state_dict().items()}
    torch.save({"model": weights, "model_ema": None}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"is of {dtype}, the model's of torch\.float32"):
        load_pretrained(model, tmp_path / "x.pth")


@pytest.mark.parametrize(("size", "new_size"), [([32, 64], [64, 96]), ([64, 32], [32, 64])])
def test_position_biases_follow_images_that_are_not_square(
    tmp_path: Path, size: list[int], new_size: list[int]
) -> None:
    keys = ["MODEL.TYPE", "vit", "MODEL.VIT.EMBED_DIM", 16, "MODEL.VIT.DEPTH", 1]
    keys += ["MODEL.VIT.NUM_HEADS", 1, "MODEL.VIT.PATCH_SIZE", 4, "MODEL.VIT.USE_SHARED_RPB", False]
    keys += ["MODEL.VIT.USE_RPB", True]
    small, large = (
        build_classifier(get_config(None, [*keys, "DATA.IMG_SIZE", each]), 3)
        for each in (size, new_size)
    )
    fill_by_rule(small)
    state = {"model": small.state_dict(), "config": {"DATA": {"IMG_SIZE": size}}}
    torch.save(state, tmp_path / "x.pth")
    report = load_pretrained(large, tmp_path / "x.pth")
    assert report.resized == ("blocks.0.attn.relative_position_bias_table",)
    source, target = ((side[0] // 4, side[1] // 4) for side in (size, new_size))
    tables = [model.get_parameter(report.resized[0]) for model in (small, large)]
    expected = resize_position_bias(tables[0].detach(), source, target)
    assert torch.equal(tables[1].detach(), expected)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_stem_for_rgb_is_adapted_to_other_channels(channels: int) -> None:
    model = classifier("swin", "MODEL.SWIN.IN_CHANS", channels)
    report = load_pretrained(model, golden_file("swin_pretrain"))
    stem = model_weights(read_checkpoint(golden_file("swin_pretrain")), "x")
    rgb = stem["encoder.patch_embed.proj.weight"]
    found = model.patch_embed.proj.weight
    if channels == 1:
        torch.testing.assert_close(found, rgb.sum(1, keepdim=True))
        assert "weights of the stem for RGB summed for 1 channel(s)" in str(report)
    else:
        rows = [rgb[:, index % 3] * 3 / channels for index in range(channels)]
        torch.testing.assert_close(found, torch.stack(rows, dim=1))
        assert f"repeated, times 3/{channels} for {channels} channel(s)" in str(report)
    assert "patch_embed.proj.weight" in report.resized


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
    "a table of no window": ({TABLE: torch.ones(120, 1)}, "120 relative positions belongs to no"),
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


def test_a_file_that_holds_a_parameter_twice_is_refused(tmp_path: Path) -> None:
    weights = classifier("swin").state_dict()
    name = next(iter(weights))
    torch.save(weights | {f"encoder.{name}": weights[name]}, path := tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"holds both {name} and encoder.{name}"):
        load_pretrained(classifier("swin"), path)


def test_names_of_classes_come_from_the_file_where_it_has_them() -> None:
    assert class_names({"classes": ["cat", "dog"]}, 2, "x") == ["cat", "dog"]
    assert class_names({"classes": []}, 2, "x") == []
    assert class_names({}, 2, "x") == []
    assert class_names({"classes": 2}, 2, "x") == []  # as other programs have it
    assert class_names({"classes": ("cat", "dog")}, 2, "x") == ["cat", "dog"]
    with pytest.raises(ValueError, match="x names 2 classes, its head 3"):
        class_names({"classes": ["cat", "dog"]}, 3, "x")


@pytest.mark.parametrize("names", [3, "cat", {"cat": 1}, [1, 2], [["cat"], "dog"], torch.ones(2)])
def test_class_names_that_are_no_list_of_names_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match=r"x: classes is .*, expected names"):
        class_names({"classes": names}, 2, "x")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (None, "no classification head"),
        (torch.tensor(1.0), "no classification head"),
        (torch.ones(200_000_000, 0), r"shape \(200000000, 0\), expected 1 to 10000000 classes"),
        (torch.ones(0, 4), r"shape \(0, 4\), expected 1"),
        (torch.ones(1).expand(20_000_000, 1), r"shape \(20000000, 1\), expected 1"),
    ],
)
def test_a_head_that_is_missing_or_claims_too_much_is_refused(
    head: torch.Tensor | None, message: str
) -> None:
    weights = {"encoder.x": torch.ones(1)} | ({} if head is None else {"head.weight": head})
    with pytest.raises(ValueError, match=message):
        head_size(weights, "x")
    assert head_size({"head.weight": torch.ones(2, 4)}, "x") == 2


def test_impossible_image_sizes_in_a_file_are_ignored() -> None:
    sizes: list[Any] = [10**400, -1, 0, True, "x", [10**400, 1], [1], [1, 2, 3], {}]
    for size in sizes:
        state: Any = {"config": {"DATA": {"IMG_SIZE": size}, "MODEL": {"SWINV2": {}}}}
        assert image_aspect(state) is None
        state["config"]["MODEL"]["SWINV2"] = {"PRETRAINED_WINDOW_SIZES": [size] * 4}
        assert swinv2_window(state, 0) is None
