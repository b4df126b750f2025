"""Killed at random moments and started again, a run ends as if it had been left alone."""

import random
from pathlib import Path

import pytest

from tests.support.kills import SCENARIOS, survive

pytestmark = pytest.mark.slow  # all start processes

KILLS = 20
SEED = 1


@pytest.mark.parametrize("index", range(len(SCENARIOS)))
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_left_alone(
    tmp_path: Path, index: int
) -> None:
    number = len(range(index, KILLS, len(SCENARIOS)))
    dice = random.Random(f"{SEED} {index}")
    assert len(survive(SCENARIOS[index], number, dice, tmp_path)) == number
