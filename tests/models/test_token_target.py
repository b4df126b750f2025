"""Tokens of an ONNX file as a target: ids, and files that do not fit."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.codebooks import write_codebook, write_tokenizer
from tests.support.small_encoders import sample, small_model

KEYS = "MODEL.SIMMIM.TOKENS."


def options(path: Path, *opts: Any) -> list[Any]:
    """Tokens of 8 pixels by a tokenizer that gets a quarter of them."""
    base: list[Any] = ["MODEL.SIMMIM.TARGET", "tokens", "MODEL.SIMMIM.LOSS", "cross_entropy"]
    base += ["DATA.MEAN", [0.5], "DATA.STD", [0.5]]
    sizes = [f"{KEYS}PATCH_SIZE", 8, f"{KEYS}SHRINK", 2, f"{KEYS}VOCABULARY", 11]
    return [*base, *sizes, f"{KEYS}FILE", str(path), *opts]


def test_tokens_are_the_ids_that_the_file_gives_to_shrunk_images(tmp_path: Path) -> None:
    model = small_model("swin", *options(write_tokenizer(tmp_path / "x.onnx")))
    grey = torch.tensor([[0.05, 0.55], [0.95, 1.7]])  # more than white is white
    image = (grey.repeat_interleave(16, 0).repeat_interleave(16, 1) - 0.5) / 0.5
    ids = model.target(image.expand(2, 3, 32, 32))
    expected = torch.tensor([[0, 0, 5, 5]] * 2 + [[9, 9, 10, 10]] * 2)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, expected.expand(2, 1, 4, 4))
    assert model.predict(*sample(model)).shape == (2, 11, 4, 4)
    model(*sample(model)).backward()


def test_the_tokenizer_gets_numbers_of_its_range(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "x.onnx", levels=1)
    model = small_model("swin", *options(path, f"{KEYS}RANGE", [0.0, 10.0]))
    image = torch.full((1, 3, 32, 32), 0.55 * 2 - 1)
    assert model.target(image).unique().tolist() == [5]


def test_images_need_not_be_square(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "x.onnx")
    model = small_model("swin", *options(path, "DATA.IMG_SIZE", [32, 48]))
    assert model.target(torch.zeros(2, 3, 32, 48)).shape == (2, 1, 4, 6)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["VOCABULARY", 5], "gives ids from 10 to 10, expected 0 to 4 by .*VOCABULARY"),
        (["PATCH_SIZE", 4], r"ids of shape \(1, 4, 4\) .*expected \(1, 8, 8\) by .*PATCH_SIZE 4"),
        (["SHRINK", 4], r"ids of shape \(1, 2, 2\) .*expected \(1, 4, 4\)"),
        (["SHRINK", 32], r"for images of shape \(1, 3, 1, 1\)"),
        (["SHRINK", 5], "DATA.IMG_SIZE is 32, which .*SHRINK = 5 does not divide"),
        (["PATCH_SIZE", 12], "DATA.IMG_SIZE is 32, which .*PATCH_SIZE = 12 does not divide"),
        (["RANGE", [1.0, 1.0]], r"RANGE is \[1.0, 1.0\], expected low < high"),
        (["FILE", ""], "needs MODEL.SIMMIM.TOKENS.FILE"),
        (["FILE", "/nowhere/x.onnx"], "FILE '/nowhere/x.onnx' cannot be read"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_when_the_model_is_built(
    tmp_path: Path, opts: list[Any], message: str
) -> None:
    path = write_tokenizer(tmp_path / "x.onnx")
    brightest = [f"{KEYS}RANGE", [1.0, 1.001]]  # so that the first image has ids of 10
    with pytest.raises(ValueError, match=message) as caught:
        small_model("swin", *options(path, *brightest, KEYS + opts[0], opts[1]))
    assert "\n" not in str(caught.value)


def test_ids_out_of_range_in_a_batch_are_an_error(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "x.onnx")
    model = small_model("swin", *options(path, f"{KEYS}VOCABULARY", 5))
    model.target(torch.full((1, 3, 32, 32), -1.0))
    with pytest.raises(ValueError, match="gives ids from 10 to 10, expected 0 to 4"):
        model.target(torch.full((1, 3, 32, 32), 9.0))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("nothing of the kind")
    write_codebook(tmp_path / "codebook.onnx", 3)
    write_tokenizer(tmp_path / "shape.onnx", squeeze=False)
    write_tokenizer(tmp_path / "batch.onnx", batch=3)
    for name in ("text", "codebook"):
        with pytest.raises(ValueError, match=rf"{name}\.onnx' cannot be read") as caught:
            small_model("swin", *options(tmp_path / f"{name}.onnx"))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"gives ids of shape \(1, 1, 4, 4\)"):
        small_model("swin", *options(tmp_path / "shape.onnx"))
    model = small_model("swin", *options(tmp_path / "batch.onnx"))
    with pytest.raises(ValueError, match=r"cannot be run on images of shape \(2, 3, 16, 16\)"):
        model(*sample(model))


def test_tokens_are_not_drawn(tmp_path: Path) -> None:
    model = small_model("swin", *options(write_tokenizer(tmp_path / "x.onnx")))
    with pytest.raises(ValueError, match="the target tokens is no picture"):
        model.reconstruct(*sample(model))


def test_tokens_shrink_no_target(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"TARGET_SHRINK is 2, expected 1 for tokens"):
        small_model("swin", *options(path, "MODEL.SIMMIM.TARGET_SHRINK", 2))


def test_memory_can_be_counted_without_the_values_of_images(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "x.onnx")
    with FakeTensorMode():
        model = small_model("swin", *options(path))
        loss = model(torch.empty(2, 3, 32, 32), torch.empty(2, 16, 16, dtype=torch.bool))
    assert loss.shape == ()


def test_where_onnxruntime_is_not_installed_a_line_tells_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # so that it cannot be imported
    path = write_tokenizer(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"not installed: pip install -r requirements-study\.txt"):
        small_model("swin", *options(path))
