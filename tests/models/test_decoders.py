"""Heads: their published sizes, their shapes, and what they refuse."""

from typing import Any

import pytest
import torch

from models import build_pretrain_model
from models.build import DECODERS
from models.inverse_swin import PatchExpanding, fitting_window
from tests.support.small_encoders import sample, small_model
from utils.config import get_config

SWIN_B = "configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml"


@pytest.mark.parametrize(
    ("head", "published", "exact"),
    [
        ("linear", 89.9, 89_874_104),
        ("mlp", 90.9, 90_923_704),
        ("inverse_swin_tiny", 115.2, 115_162_709),
        ("inverse_swin_base", 174.8, 174_748_915),
    ],
)
def test_swin_b_has_the_published_number_of_parameters_with_each_head(
    head: str, published: float, exact: int
) -> None:
    """In millions, in the paper's table of heads; it gives one more digit than it rounds to."""
    with torch.device("meta"):
        model = build_pretrain_model(get_config(SWIN_B, ["MODEL.SIMMIM.DECODER", head]))
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == exact
    assert found / 1e6 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("head", DECODERS)
def test_a_head_predicts_stride_times_stride_pixels_for_a_feature(head: str, stride: int) -> None:
    with torch.device("meta"):
        decoder = DECODERS[head](24, stride, 5, (2, 3))
        prediction = decoder(torch.empty(2, 24, 2, 3))
    assert prediction.shape == (2, 5, 2 * stride, 3 * stride)


@pytest.mark.parametrize(("stride", "widths"), [(4, [96]), (8, [192, 96]), (16, [384, 192, 96])])
def test_a_smaller_stride_leaves_out_the_widest_stages(stride: int, widths: list[int]) -> None:
    with torch.device("meta"):
        decoder: Any = DECODERS["inverse_swin_tiny"](24, stride, 3, (6, 6))
    assert decoder.embed.out_features == widths[0]
    assert [stage.blocks[0].norm1.normalized_shape[0] for stage in decoder.stages] == widths


@pytest.mark.parametrize("stride", [1, 2, 3, 12, 64])
def test_a_stride_that_no_stages_have_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=rf"by 4, 8, 16 or 32, and here {stride} pixel\(s\)"):
        DECODERS["inverse_swin_base"](24, stride, 3, (6, 6))


def test_a_token_becomes_a_square_of_tokens_at_its_place() -> None:
    """Token i of 2 x 3 is all i; its four parts are i + 0.0, 0.1, 0.2, 0.3, row by row."""
    expanding = PatchExpanding(dim=1, width=1, factor=2, grid=(2, 3))
    expanding.norm = torch.nn.Identity()  # type: ignore[assignment]  # which would make all 0
    torch.nn.init.ones_(expanding.expansion.weight)
    expanding.expansion.bias = torch.nn.Parameter(torch.arange(4) / 10)
    tokens = expanding(torch.arange(6.0).view(1, 6, 1)).view(4, 6)
    expected = torch.arange(6.0).view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    parts = torch.tensor([[0.0, 0.1], [0.2, 0.3]]).repeat(2, 3)
    torch.testing.assert_close(tokens, expected + parts)


@pytest.mark.parametrize(
    ("grid", "window"),
    [
        ((6, 6), 6),
        ((48, 48), 6),
        ((7, 7), 7),
        ((12, 14), 7),
        ((12, 20), 4),
        ((2, 2), 7),
        ((9, 9), 7),
    ],
)
def test_windows_divide_the_map_where_they_can(grid: tuple[int, int], window: int) -> None:
    assert fitting_window(grid) == window


@pytest.mark.parametrize("head", DECODERS)
@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_no_head_sees_hidden_pixels(head: str, kind: str) -> None:
    """The mask reaches the encoder alone; infinite pixels would show."""
    model = small_model(kind, "MODEL.SIMMIM.DECODER", head).eval()
    image, mask = sample(model)
    hidden = mask.unsqueeze(1)
    for axis in (2, 3):
        hidden = hidden.repeat_interleave(image.shape[axis] // mask.shape[axis - 1], axis)
    changed = torch.where(hidden, torch.inf, image)
    with torch.no_grad():
        assert torch.equal(model.predict(image, mask), model.predict(changed, mask))


def test_positions_matter_to_the_stages_of_an_inverse_swin() -> None:
    """Every parameter takes part, the tables of the windows too."""
    model = small_model("swin", "MODEL.SIMMIM.DECODER", "inverse_swin_tiny")
    model(*sample(model)).backward()
    for name, parameter in model.decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
