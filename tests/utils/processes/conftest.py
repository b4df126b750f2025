"""A Slurm that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.support import slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    """A Slurm of two nodes, and of two more that a test may lose."""
    if lacking := slurm.missing():
        pytest.skip(f"a Slurm of our own {lacking}")
    with slurm.slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running
