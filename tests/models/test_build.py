"""Models from the path of a checkpoint alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import (
    build_classifier,
    build_pretrain_model,
    load_classifier,
    load_simmim,
    stored_config,
)
from models.build import ENCODERS
from models.vision_transformer import VisionTransformer
from tests.support.golden_cases import GOLDEN, options, read_golden
from tests.support.small_encoders import OURS, SMALL, sample
from utils.config import get_config, to_plain
from utils.randomness import MODEL_STREAM, seed_all


@pytest.mark.parametrize("kind", OURS)
def test_a_pretrained_model_is_loaded_with_the_configuration_that_its_file_stores(
    tmp_path: Path, kind: str
) -> None:
    cfg = get_config(None, [*SMALL[kind], "MODEL.DROP_PATH_RATE", 0.5])
    model = build_pretrain_model(cfg).eval()
    torch.save({"model": model.state_dict(), "config": to_plain(cfg)}, tmp_path / "x.pth")
    loaded = load_simmim(tmp_path / "x.pth")
    assert not loaded.training
    assert torch.equal(loaded(*sample(model)), model(*sample(model)))
    assert stored_config(tmp_path / "x.pth") == cfg


@pytest.mark.parametrize("kind", OURS)
def test_a_classifier_is_loaded_with_its_averaged_weights_and_the_names_of_its_classes(
    tmp_path: Path, kind: str
) -> None:
    cfg = get_config(None, SMALL[kind])
    raw, average = (build_classifier(cfg, 3).eval() for _ in range(2))
    state: dict[str, Any] = {"model": raw.state_dict(), "model_ema": average.state_dict()}
    state |= {"config": to_plain(cfg), "classes": ["cat", "dog", "cow"]}
    torch.save(state, tmp_path / "x.pth")
    loaded, classes = load_classifier(tmp_path / "x.pth")
    image = torch.randn(2, 3, 32, 32)
    assert classes == ["cat", "dog", "cow"]
    assert torch.equal(loaded(image), average(image))
    assert not torch.equal(loaded(image), raw(image))


def test_files_that_store_no_configuration_need_that_of_their_recipe(tmp_path: Path) -> None:
    cfg = get_config(None, SMALL["vit"])
    model = build_pretrain_model(cfg).eval()
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    for load in (load_simmim, stored_config):
        with pytest.raises(ValueError, match=r"x\.safetensors stores no configuration: give that"):
            load(tmp_path / "x.safetensors")
    loaded = load_simmim(tmp_path / "x.safetensors", cfg)
    assert torch.equal(loaded(*sample(model)), model(*sample(model)))
    with pytest.raises(ValueError, match="does not fit the model"):
        load_simmim(tmp_path / "x.safetensors", get_config(None, SMALL["swin"]))
    with pytest.raises(ValueError, match="has no classification head"):
        load_classifier(tmp_path / "x.safetensors", cfg)


def test_a_file_whose_configuration_asks_for_more_memory_than_there_is_builds_nothing(
    tmp_path: Path,
) -> None:
    cfg = get_config(None, [*SMALL["swin"], "MODEL.SWIN.EMBED_DIM", 96_000])
    torch.save({"model": {"x": torch.ones(1)}, "config": to_plain(cfg)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"more than the \d+ GiB of this machine"):
        load_simmim(tmp_path / "x.pth")
    with torch.device("meta"):  # as tools.plan does, whose models need no memory
        build_pretrain_model(cfg)


def drop_paths_from_values(**keys: Any) -> nn.Module:
    assert [rate.item() for rate in torch.linspace(0, 1, 3)] == [0.0, 0.5, 1.0]
    return VisionTransformer(**keys)


def drop_paths_from_numpy(**keys: Any) -> nn.Module:
    assert np.asarray(torch.arange(3)).tolist() == [0, 1, 2]
    return VisionTransformer(**keys)


@pytest.mark.parametrize("build", [drop_paths_from_values, drop_paths_from_numpy])
def test_an_encoder_whose_constructor_needs_values_is_built_although_it_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    monkeypatch.setitem(ENCODERS, "vit", build)
    assert build_classifier(get_config(None, SMALL["vit"]), 2).num_features == 32


def test_counting_an_encoder_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(**keys: Any) -> nn.Module:
        drawn.append((random.random(), float(np.random.rand())))
        return VisionTransformer(**keys)

    drawn: list[tuple[float, float]] = []
    monkeypatch.setitem(ENCODERS, "vit", draw)
    seed_all(MODEL_STREAM, 7)
    expected = random.random(), float(np.random.rand())
    seed_all(MODEL_STREAM, 7)
    build_classifier(get_config(None, SMALL["vit"]), 2)
    assert len(drawn) == 2
    assert drawn[1] == expected


def test_an_error_of_a_constructor_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**keys: Any) -> nn.Module:
        raise RuntimeError("GRID overflows")

    monkeypatch.setitem(ENCODERS, "vit", fail)
    with pytest.raises(RuntimeError, match="GRID overflows"):
        build_classifier(get_config(None, SMALL["vit"]), 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_sizes_that_torch_cannot_count_are_refused_everywhere(device: str) -> None:
    widest = ["MODEL.SWIN.EMBED_DIM", 96_000, "MODEL.SWIN.DEPTHS", [1] * 16]
    widest += ["MODEL.SWIN.NUM_HEADS", [1] * 16, "MODEL.SWIN.PATCH_SIZE", 2]
    cfg = get_config(None, [*SMALL["swin"], *widest, "DATA.IMG_SIZE", 2**16])
    message = r"a tensor of more than 2\^63 bytes"
    with torch.device(device), pytest.raises(ValueError, match=message):
        build_classifier(cfg, 2)


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_published_files_are_loaded_with_their_recipe(kind: str) -> None:
    expected = read_golden("checkpoints/expected.json")[kind]
    path = GOLDEN / f"checkpoints/{kind}_pretrain.pth"
    with pytest.raises(ValueError, match=rf"{kind}_pretrain\.pth: unknown key.*give that of"):
        load_simmim(path)
    load_simmim(path, get_config(None, options(expected["pretrain_config"])))
