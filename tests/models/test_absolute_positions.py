"""Absolute position embeddings follow the model to another image size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import build_classifier, build_pretrain_model, load_pretrained
from models.position_bias import grid_of_positions
from tests.support.golden_cases import fill_by_rule
from tests.support.small_encoders import SMALL
from utils.config import get_config, to_plain

APE = {
    "swin": ("absolute_pos_embed", 0, ["MODEL.SWIN.APE", True, "MODEL.SWIN.DEPTHS", [1, 1, 1]]),
    "swinv2": (
        "absolute_pos_embed",
        0,
        ["MODEL.SWINV2.APE", True, "MODEL.SWINV2.DEPTHS", [1, 1, 1]],
    ),
    "vit": (
        "pos_embed",
        1,
        ["MODEL.VIT.USE_APE", True, "MODEL.VIT.USE_SHARED_RPB", False, "MODEL.VIT.DEPTH", 1],
    ),
}


def config(kind: str, size: Any) -> Any:
    return get_config(None, [*SMALL[kind], *APE[kind][2], "DATA.IMG_SIZE", size])


def pretrained(path: Path, kind: str, size: Any, tells: bool = True) -> Tensor:
    """Write a pre-trained model's file, with its configuration or not; return its embedding."""
    model: Any = build_pretrain_model(config(kind, size))
    fill_by_rule(model)
    told = {"config": to_plain(config(kind, size))} if tells else {}
    torch.save({"model": model.state_dict()} | told, path)
    return model.state_dict()[f"encoder.{APE[kind][0]}"].clone()


def grid(embedding: Tensor, kept: int, rows: int) -> Tensor:
    """The embedding's positions as a picture (1, C, rows, columns)."""
    return embedding[:, kept:].transpose(1, 2).unflatten(2, (rows, -1))


@pytest.mark.parametrize(
    ("size", "new_size"), [(32, 64), (64, [32, 64]), ([32, 64], [64, 32])], ids=str
)
@pytest.mark.parametrize("kind", APE)
def test_an_absolute_position_embedding_is_resized_to_the_models_grid(
    tmp_path: Path, kind: str, size: Any, new_size: Any
) -> None:
    name, kept, _ = APE[kind]
    stored = pretrained(tmp_path / "x.pth", kind, size)
    model: Any = build_classifier(config(kind, new_size), 3)
    report = load_pretrained(model, tmp_path / "x.pth")
    assert name in report.resized
    assert name not in report.loaded
    found = model.state_dict()[name]
    target = model.patch_embed.grid
    rows = (size if isinstance(size, int) else size[0]) // model.patch_size
    expected = F.interpolate(
        grid(stored, kept, rows), target, mode="bicubic", antialias=True, align_corners=False
    )
    torch.testing.assert_close(grid(found, kept, target[0]), expected)
    assert torch.equal(found[:, :kept], stored[:, :kept])  # the class token's position


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("kind", APE)
def test_at_the_same_size_an_embedding_keeps_every_bit(
    tmp_path: Path, kind: str, tells: bool
) -> None:
    stored = pretrained(tmp_path / "x.pth", kind, [32, 64], tells)
    model: Any = build_classifier(config(kind, [32, 64]), 3)
    report = load_pretrained(model, tmp_path / "x.pth")
    assert not report.resized
    assert torch.equal(model.state_dict()[APE[kind][0]], stored)


@pytest.mark.parametrize("kind", APE)
def test_without_a_configuration_only_a_square_can_be_resized(tmp_path: Path, kind: str) -> None:
    pretrained(tmp_path / "square.pth", kind, 32, tells=False)
    pretrained(tmp_path / "wide.pth", kind, [32, 64], tells=False)
    model: Any = build_classifier(config(kind, 64), 3)
    assert APE[kind][0] in load_pretrained(model, tmp_path / "square.pth").resized
    with pytest.raises(ValueError, match=rf"wide\.pth: {APE[kind][0]}: \d+ positions form no squ"):
        load_pretrained(model, tmp_path / "wide.pth")


@pytest.mark.parametrize(
    "embedding", [torch.zeros(1, 64), torch.zeros(1, 65, 9), torch.zeros(1, 65, 32).long()], ids=str
)
def test_what_is_no_embedding_of_this_model_is_refused(tmp_path: Path, embedding: Tensor) -> None:
    pretrained(path := tmp_path / "x.pth", "vit", 32)
    content = torch.load(path)
    content["model"]["encoder.pos_embed"] = embedding
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"does not fit the model: pos_embed"):
        load_pretrained(build_classifier(config("vit", 64), 3), path)


@pytest.mark.parametrize(("number", "aspect"), [(63, 1.0), (0, 1.0), (-1, 1.0), (64, 2.0)])
def test_positions_that_form_no_grid_are_refused(number: int, aspect: float) -> None:
    with pytest.raises(ValueError, match=f"{number} positions form no"):
        grid_of_positions(number, aspect)


def test_the_grid_follows_from_the_shape_of_the_images() -> None:
    assert grid_of_positions(64, 1.0) == (8, 8)
    assert grid_of_positions(128, 2.0) == (16, 8)
    assert grid_of_positions(96, 2 / 3) == (8, 12)
