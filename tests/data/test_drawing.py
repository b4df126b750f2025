"""Pictures of a run show something whatever the unit and offset of the data are."""

import pytest
import torch

from data.drawing import visible
from data.transforms import Normalizer, to_uint8


def test_8_bit_rgb_is_drawn_as_it_is() -> None:
    image = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    other = torch.rand(2, 3, 8, 8) * 1.2 - 0.1
    drawn = visible(image, other)
    assert torch.equal(drawn[0], image)
    assert torch.equal(drawn[1], to_uint8(other))


@pytest.mark.parametrize(("scale", "offset"), [(500.0, 0.0), (1e-4, 0.0), (1e4, -3e4)])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_other_numbers_are_stretched_alike_in_all_columns(
    scale: float, offset: float, channels: int
) -> None:
    image = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    image = image * scale + offset
    normalize = Normalizer([offset], [scale], channels)
    drawn, same = visible(image, normalize.numbers(normalize(image)))
    assert (drawn.int() - same.int()).abs().max() <= 1
    levels = drawn[:, : 3 if channels >= 3 else 1].float()
    assert 20 < levels.std() < 80
    assert len(levels.unique()) > 100


def test_an_image_of_one_value_is_drawn() -> None:
    drawn, _ = visible(torch.full((1, 1, 4, 4), -5.0), torch.zeros(1, 1, 4, 4))
    assert (drawn == 0).all()
