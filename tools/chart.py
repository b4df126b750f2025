"""What the tools that draw curves share."""

from typing import Any


def new_chart(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches; ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("drawing curves needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_chart(chart: Any, picture: str) -> None:
    """Write a figure; ValueError where the file cannot be written."""
    try:
        chart.savefig(picture, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"picture {picture} cannot be written: {error}") from None
