"""Charts of the tools that draw curves."""

from pathlib import Path
from typing import Any


def new_chart(width: float, height: float) -> Any:
    """An empty matplotlib figure, size in inches; ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("drawing curves needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_chart(chart: Any, picture: str) -> str:
    """Write a figure, as PNG if the name has no suffix; return the file's name.

    ValueError where the file cannot be written.
    """
    picture = picture if Path(picture).suffix else f"{picture}.png"
    try:
        chart.savefig(picture, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"picture {picture} cannot be written: {error}") from None
    return picture
