"""Windows: shapes of every kind, and padding that no real token sees."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.swin_transformer import WindowAttention
from models.swin_transformer_v2 import CosineWindowAttention
from models.windows import (
    Windows,
    gather_position_bias,
    join_neighbours,
    relative_position_index,
)

GRIDS = [(8, 8), (8, 12), (7, 9), (5, 4), (3, 10)]


def attentions(window: tuple[int, int]) -> list[Any]:
    torch.manual_seed(0)
    plain = WindowAttention(8, window, 2, True, None, 0.0)
    return [plain, CosineWindowAttention(8, window, 2, True, 0.0, window)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_reversing_a_window_partition_gives_the_map_back(
    grid: tuple[int, int], shifted: bool
) -> None:
    windows = Windows(grid, 4, shifted)
    feature_map = torch.randn(2, *grid, 3)
    assert torch.equal(windows.reverse(windows.partition(feature_map)), feature_map)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("version", [0, 1])
def test_padding_cannot_reach_a_real_token(
    grid: tuple[int, int], shifted: bool, version: int
) -> None:
    windows = Windows(grid, 4, shifted)
    attention = attentions(windows.window)[version]
    real = windows.partition(torch.ones(1, *grid, 1)).bool().expand(-1, -1, 8)
    cells = windows.partition(torch.randn(1, *grid, 8))
    other = torch.where(real, cells, 1e3 * torch.randn(cells.shape))
    found, expected = (windows.reverse(attention(part, windows.mask)) for part in (other, cells))
    assert torch.equal(found, expected)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("version", [0, 1])
def test_a_padded_map_attends_like_its_own_tokens_alone(version: int) -> None:
    """3 x 6 under windows of 4: the right window holds 3 x 2 real tokens."""
    windows = Windows((3, 6), 4, shifted=False)
    attention = attentions(windows.window)[version].double()
    tokens = torch.randn(1, 18, 8, dtype=torch.float64)
    found = windows(tokens, attention).view(3, 6, 8)
    small = Windows((3, 2), 4, shifted=False)
    alone = attentions(small.window)[version].double()
    if version == 0:  # the same biases at the same offsets
        table = attention.relative_position_bias_table.detach().view(5, 7, 2)[:, 2:5]
        alone.relative_position_bias_table.data = table.reshape(-1, 2)
    else:
        alone.relative_coords_table = attention.relative_coords_table[:, :, 2:5]
    right = tokens.view(1, 3, 6, 8)[:, :, 4:].reshape(1, 6, 8)
    expected = small(right, lambda cells, mask: attend_as(attention, alone, cells)).view(3, 2, 8)
    torch.testing.assert_close(found[:, 4:], expected)


def attend_as(attention: Any, small: Any, cells: Tensor) -> Any:
    """The small attention with the other's weights, except its positions."""
    weights = attention.state_dict() | {
        name: value for name, value in small.state_dict().items() if "relative" in name
    }
    small.load_state_dict(weights)
    return small(cells)


def test_a_fitting_map_is_neither_padded_nor_masked() -> None:
    windows = Windows((8, 12), 4, shifted=False)
    assert windows.padded == windows.grid
    assert windows.mask is None
    assert Windows((4, 3), 4, shifted=True).shift == (0, 0)
    assert Windows((4, 8), 4, shifted=True).shift == (0, 2)


def test_shifted_windows_keep_opposite_borders_apart() -> None:
    """Token 0 moves into the last window, whose other tokens come from the far border."""
    windows = Windows((8, 8), 4, shifted=True)
    assert windows.mask is not None
    place = windows.partition(torch.arange(64).view(1, 8, 8, 1)).squeeze(-1)
    row, column = place // 8, place % 8
    apart = (
        (row[:, :, None] - row[:, None]).abs().maximum((column[:, :, None] - column[:, None]).abs())
    )
    assert torch.equal(windows.mask == 0, apart < 4)
    assert windows.mask.unique().tolist() == [-100, 0]


def test_neighbours_beyond_an_odd_border_count_as_zeros() -> None:
    tokens = torch.arange(1.0, 16.0).view(1, 15, 1)  # 3 x 5
    joined = join_neighbours(tokens, (3, 5))
    assert joined.tolist() == [
        [[1, 6, 2, 7], [3, 8, 4, 9], [5, 10, 0, 0], [11, 0, 12, 0], [13, 0, 14, 0], [15, 0, 0, 0]]
    ]


def test_gradients_of_position_biases_are_the_same_each_time_on_several_threads() -> None:
    """As many heads as the last stage of Swin-B has: enough for threads to share the work."""
    torch.manual_seed(0)
    table = torch.randn(121, 32, requires_grad=True)
    index, weight = relative_position_index(6, 6), torch.randn(36, 36, 32).permute(2, 0, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients: set[bytes] = set()
        for _ in range(50):
            table.grad = None
            gather_position_bias(table, index).backward(weight)
            assert table.grad is not None
            gradients.add(table.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(gradients) == 1
