"""What a run logs about an update."""

from typing import Any

from logger import SCALARS


def record(update: int, **changes: Any) -> dict[str, Any]:
    figures = dict.fromkeys((*SCALARS, "loss_mean", "grad_norm_mean", "time", "time_mean"), 0.5)
    return figures | {"skipped": 0, "update": update, "index": update, "num_updates": 10} | changes
