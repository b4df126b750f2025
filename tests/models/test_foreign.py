"""Weights of this architecture in the wrappings of other programs: found by name, or refused."""

import argparse
import collections
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from models import (
    build_classifier,
    build_pretrain_model,
    load_classifier,
    load_pretrained,
    load_simmim,
)
from models.build import DECODERS
from models.foreign import find_weights
from models.windows import Grid
from tests.support.golden_cases import fill_by_rule
from tests.support.small_encoders import SMALL
from utils.config import get_config, to_plain

SMALLEST = [*SMALL["vit"], "MODEL.VIT.DEPTH", 2, "MODEL.VIT.EMBED_DIM", 16]
CFG = get_config(None, SMALLEST)
Weights = dict[str, Tensor]


def filled(model: Any) -> Any:
    fill_by_rule(model)
    return model


PRETRAINED: Weights = filled(build_pretrain_model(CFG)).state_dict()
CLASSIFIER: Weights = filled(build_classifier(CFG, 3)).state_dict()
ENCODER = {name[8:]: value for name, value in PRETRAINED.items() if name.startswith("encoder.")}


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def found_in(path: Path, content: Any) -> str:
    """Save a classifier's content, load it as both programs do, return what the logs say."""
    torch.save(content, path)
    model: Any = build_classifier(CFG, 3)
    report = load_pretrained(model, path)
    assert len(report.loaded) == len(CLASSIFIER)
    said: list[str] = []
    evaluated, _ = load_classifier(path, CFG, said.append)
    for each in (model, evaluated):
        assert all(
            torch.equal(value, CLASSIFIER[name]) for name, value in each.state_dict().items()
        )
    origin = report.notes[0] if report.notes else ""
    assert said == ([f"{path}: its weights are {origin}"] if origin else [])
    return origin


def reconstructs(path: Path, content: Any) -> str:
    """Save a pre-trained model's content, load it, return what was said."""
    torch.save(content, path)
    said: list[str] = []
    model = load_simmim(path, CFG, said.append)
    assert all(torch.equal(value, PRETRAINED[name]) for name, value in model.state_dict().items())
    report = load_pretrained(build_classifier(CFG, 3), path)
    assert set(report.initialized) == {"head.weight", "head.bias"}
    return " ".join(said)


SECTIONS = ("state_dict", "model_state_dict", "module", "net", "network", "state_dict_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "backbone.", "model.encoder.", "net.0.")


@pytest.mark.parametrize("name", SECTIONS)
def test_a_usual_section_is_looked_into_and_named(tmp_path: Path, name: str) -> None:
    said = found_in(tmp_path / "x.pth", {name: CLASSIFIER, "epoch": 3})
    assert said == f"taken from its section {name}"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_taken_off_and_named(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "x.pth"
    said = f'without the prefix "{prefix}"'
    assert found_in(path, prefixed(prefix, CLASSIFIER)) == f"taken {said}"
    torch.save({"state_dict": prefixed(prefix, ENCODER)}, path)
    report = load_pretrained(build_classifier(CFG, 3), path)
    assert report.notes == (f"taken from its section state_dict, {said}",)
    assert report.left_over == ("mask_token",)


def test_a_pretrained_model_is_found_in_a_section_and_behind_a_prefix(tmp_path: Path) -> None:
    said = reconstructs(tmp_path / "x.pth", {"state_dict": prefixed("module.", PRETRAINED)})
    assert said.endswith('are taken from its section state_dict, without the prefix "module."')


def test_the_wrappings_of_this_project_are_not_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for own in (CLASSIFIER, {"model": CLASSIFIER}, {"model_ema": CLASSIFIER, "model": {}}):
        assert found_in(path, own) == ""
    assert reconstructs(path, PRETRAINED) == ""
    assert reconstructs(path, {"model": PRETRAINED, "epoch": 3}) == ""


def test_sections_lie_in_sections(tmp_path: Path) -> None:
    for outer, inner in (("state_dict", "model"), ("model", "state_dict")):
        origin = found_in(tmp_path / "x.pth", {outer: {inner: CLASSIFIER}})
        assert origin == f"taken from its section {outer}.{inner}"


def test_what_wrappers_insert_into_names_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    averaged = AveragedModel(filled(build_classifier(CFG, 3))).state_dict()
    assert found_in(path, {"ema": averaged}) == (
        'taken from its section ema, without the prefix "module."'
    )
    inserted = {
        name.replace("blocks.1.", "blocks.1._orig_mod."): value
        for name, value in CLASSIFIER.items()
    }
    assert found_in(path, inserted) == 'taken without "_orig_mod." in its names'
    name = next(name for name in inserted if "_orig_mod" in name)
    torch.save(inserted | {name.replace("_orig_mod.", ""): inserted[name]}, path)
    with pytest.raises(ValueError, match=r"x\.pth holds a parameter under two names"):
        load_classifier(path, CFG)


def test_what_lies_beside_the_weights_does_not_matter(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=1),
        "score": np.float64(3.5),
        "path": PosixPath("/a"),
        "device": torch.device("cpu"),
        "lists": collections.defaultdict(list, {"a": [1]}),
        "network": "vit",
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
    }
    assert found_in(tmp_path / "x.pth", beside | {"model": CLASSIFIER}) == ""
    named = beside | {"model": "vit_small", "state_dict": CLASSIFIER}
    assert found_in(tmp_path / "x.pth", named) == "taken from its section state_dict"


def test_of_two_sections_the_averaged_or_the_only_fitting_one_counts(tmp_path: Path) -> None:
    path, other = tmp_path / "x.pth", {"weight": torch.ones(1)}
    averaged = {"state_dict_ema": CLASSIFIER, "state_dict": prefixed("x.", CLASSIFIER)}
    assert found_in(path, averaged) == "taken from its section state_dict_ema"
    assert found_in(path, {"net": CLASSIFIER, "module": other}) == "taken from its section net"
    torch.save({"net": CLASSIFIER, "state_dict": CLASSIFIER}, path)
    message = r"x\.pth holds weights for this model in its sections state_dict and net: save the"
    for load in (load_classifier, load_simmim):
        with pytest.raises(ValueError, match=message):
            load(path, CFG)
    with pytest.raises(ValueError, match=message):
        load_pretrained(build_classifier(CFG, 3), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"student": ENCODER, "teacher": ENCODER}, "no weights .*, among its sections student, te"),
        ([ENCODER], "no weights under a usual name$"),
        ({}, "no weights under a usual name$"),
        ({"model": {"a": 1}}, "no weights under a usual name, among its sections model"),
        (
            prefixed("backbone.", ENCODER) | {"neck.x": torch.ones(1)},
            '37 of its 38 names have the prefix "backbone." before the model\'s, the others do not '
            r"\(first: neck\.x\): save the weights without the prefix",
        ),
        (
            prefixed("backbone.", ENCODER) | {"head.weight": torch.ones(3, 16)},
            '37 of its 38 names have the prefix "backbone." before the model\'s',
        ),
        (prefixed("module.", {"a.b": torch.ones(1)}), "cls_token is missing"),
        (prefixed("module.", PRETRAINED | {"x": torch.ones(1)}), "x is not in the model"),
        (
            prefixed("module.", ENCODER | {"norm.weight": torch.ones(9)}),
            r"norm\.weight has shape \(9,\), the model \(16,\)",
        ),
    ],
    ids=[
        "two",
        "list",
        "empty",
        "no tensors",
        "some names",
        "all but the head",
        "another model",
        "more",
        "shape",
    ],
)
def test_what_does_not_fit_fully_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, path := tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(build_classifier(CFG, 3), path)
    assert "\n" not in str(error.value)


def test_the_other_stage_is_recognized_behind_a_prefix(tmp_path: Path) -> None:
    torch.save(prefixed("module.", CLASSIFIER), path := tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is a classifier, which reconstructs nothing"):
        load_simmim(path, CFG)
    torch.save({"state_dict": PRETRAINED}, path)
    with pytest.raises(ValueError, match="has no classification head"):
        load_classifier(path, CFG)


class _Decoder(torch.nn.Module):
    """A head whose part has the name of a classifier's."""

    def __init__(self, features: int, stride: int, channels: int, grid: Grid) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(features, channels * stride**2, kernel_size=1)
        self.shuffle = torch.nn.PixelShuffle(stride)

    def forward(self, features: Tensor) -> Tensor:
        shuffled: Tensor = self.shuffle(self.head(features))
        return shuffled


def test_a_decoder_with_a_part_named_head_is_no_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECODERS, "own", _Decoder)
    cfg = get_config(None, [*SMALLEST, "MODEL.SIMMIM.DECODER", "own"])
    weights = filled(build_pretrain_model(cfg)).state_dict()
    torch.save({"model": weights}, path := tmp_path / "x.pth")
    loaded = load_simmim(path, cfg).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert "decoder.head.weight" in load_pretrained(build_classifier(cfg, 3), path).left_over


def test_names_of_countless_parts_are_compared_soon() -> None:
    weights = {"a." * 10**5 + str(index): torch.ones(1) for index in range(3)}
    found, _ = find_weights(weights, "x", list(CLASSIFIER))
    assert len(found) == 3


def test_pictures_prepared_otherwise_than_in_training_are_named(tmp_path: Path) -> None:
    opts = ["DATA.MEAN", [0.1], "DATA.INTERPOLATION", "bilinear", "TEST.CROP", False]
    config = to_plain(get_config(None, [*SMALLEST, *opts]))
    path, said = tmp_path / "x.pth", list[str]()
    torch.save({"model": CLASSIFIER, "config": config}, path)
    load_classifier(path, CFG, said.append)
    torch.save({"model": PRETRAINED, "config": config}, path)
    load_simmim(path, CFG, said.append)
    start = f"{path} was trained with pictures prepared otherwise: DATA.MEAN [0.1] -> [0.485, "
    assert [line.startswith(start) for line in said] == [True, True]
    assert said[0].endswith("'bilinear' -> 'bicubic', TEST.CROP False -> True")
    assert said[1].endswith("0.406]")  # of pre-training, which uses neither
    load_simmim(path, say=said.append)  # with the file's own configuration
    torch.save({"model": CLASSIFIER, "config": to_plain(CFG)}, path)
    load_classifier(path, CFG, said.append)
    torch.save({"model": CLASSIFIER, "config": {"lr": 1}}, path)
    load_classifier(path, CFG, said.append)
    assert len(said) == 2
