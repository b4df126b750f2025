"""Running statistics of batch norms: of all processes, and of updates that count."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.one_epoch import run_epoch
from tests.support.pairs import told_by
from utils.processes.statistics import RunningStatistics

IMAGES = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))


def forward(images: Tensor, grad_norm: float) -> nn.BatchNorm1d:
    """A batch norm after one update."""
    norm = nn.BatchNorm1d(2).train()
    statistics = RunningStatistics(norm)
    norm(images)
    statistics.complete_update(torch.tensor(grad_norm))
    return norm


def means_and_variances(norm: nn.BatchNorm1d) -> list[Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [norm.running_mean, norm.running_var]


def test_in_one_process_they_are_torchs() -> None:
    plain = nn.BatchNorm1d(2)
    plain(IMAGES)
    found, expected = map(means_and_variances, (forward(IMAGES, 1.0), plain))
    assert all(map(torch.equal, found, expected))
    RunningStatistics(nn.Linear(1, 1)).complete_update(torch.tensor(1.0))


@pytest.mark.parametrize("grad_norm", [math.nan, math.inf])
def test_an_update_that_is_skipped_leaves_them(grad_norm: float) -> None:
    for images in (IMAGES, IMAGES * math.nan):
        mean, variance = means_and_variances(forward(images, grad_norm))
        assert mean.tolist() == [0, 0]
        assert variance.tolist() == [1, 1]


def test_a_batch_that_is_no_number_does_not_reach_validation() -> None:
    """The second of four updates has such a loss; the others count."""
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).double()
    updates = iter(range(4))

    def spoil(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * math.nan,) if next(updates) == 1 else inputs

    model[1].register_forward_pre_hook(spoil)
    run_epoch(8, model=model)
    for name, value in model.state_dict().items():
        assert value.isfinite().all(), name
    assert model.state_dict()["1.running_mean"].all()


def of_half(rank: int, folder: Path) -> list[list[float]]:
    """One process of two, with half of the images."""
    norm = forward(IMAGES[4 * rank : 4 * rank + 4], 1.0)
    return [values.tolist() for values in means_and_variances(norm)]


@pytest.mark.slow
def test_all_processes_keep_the_mean_of_theirs(tmp_path: Path) -> None:
    halves = [means_and_variances(forward(IMAGES[place], 1.0)) for place in (slice(4), slice(4, 8))]
    expected = [((one + other) / 2).tolist() for one, other in zip(*halves, strict=True)]
    assert told_by(2, tmp_path, of_half) == [str(expected)] * 2
    whole = forward(IMAGES, 1.0).running_mean
    assert whole is not None
    torch.testing.assert_close(torch.tensor(expected[0]), whole)
