"""What a machine's loader workers reach together."""

import time
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tools.measuring.host import images_per_second


class Slow:
    """Four samples, each of which takes a worker 20 ms."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


@pytest.mark.slow
def test_all_workers_are_measured_also_where_a_pass_has_one_batch() -> None:
    data: Any = Slow()
    loader: Any = DataLoader(data, 4, num_workers=2, collate_fn=lambda samples: [samples])
    found = images_per_second(loader, 2.0)
    assert 1.5 / 0.02 < found < 2.2 / 0.02, "of one worker it is 50"
