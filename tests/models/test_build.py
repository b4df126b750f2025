"""Models from the path of a checkpoint alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models import (
    build_classifier,
    build_pretrain_model,
    load_classifier,
    load_simmim,
    stored_config,
)
from tests.support.golden_cases import GOLDEN, options, read_golden
from tests.support.small_encoders import OURS, SMALL, sample
from utils.config import get_config, to_plain


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


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_published_files_are_loaded_with_their_recipe(kind: str) -> None:
    expected = read_golden("checkpoints/expected.json")[kind]
    path = GOLDEN / f"checkpoints/{kind}_pretrain.pth"
    with pytest.raises(ValueError, match=rf"{kind}_pretrain\.pth: unknown key.*give that of"):
        load_simmim(path)
    load_simmim(path, get_config(None, options(expected["pretrain_config"])))
