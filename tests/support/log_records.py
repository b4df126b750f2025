"""What a run logs about an update."""

from typing import Any

CURVES = (
    *("loss", "lr", "grad_norm", "images_per_second", "data_wait", "memory_mb", "skipped"),
    *("scale_adjustments", "broken_pictures"),
)


def record(update: int, **changes: Any) -> dict[str, Any]:
    figures = dict.fromkeys((*CURVES, "loss_mean", "grad_norm_mean", "time", "time_mean"), 0.5)
    return figures | {"skipped": 0, "update": update, "index": update, "num_updates": 10} | changes
