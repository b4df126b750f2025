"""The report of a table: Markdown, and a picture."""

import functools
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from data.build import build_mask
from data.mask_distance import average_distance
from models.build import build_encoder
from tools.chart import new_chart, save_chart
from tools.study.results import Results, with_spread
from tools.study.rows import DEFAULT, Row
from utils.config import get_config

_DRAWS = 1000
_COLUMNS = ("row", "changes", "top-1, %", "seeds", "paper, %", "cost", "loss")


def write_report(rows: Sequence[Row], results: Results, stem: Path) -> list[str]:
    """Write STEM.md and, where matplotlib is installed and rows have results, STEM.png.

    Return lines that tell what was written.
    """
    columns, lines = list(_COLUMNS), [_cells(row, results) for row in rows]
    distances = _distances(rows) if stem.name.endswith("masks") else {}
    if distances:
        columns.append("AvgDist, px")
        lines = [
            [*line, f"{distances[row.name]:.1f}"] for line, row in zip(lines, rows, strict=True)
        ]
    table = [columns, ["---"] * len(columns), *lines]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    path = stem.with_suffix(".md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    measured = [row for row in rows if results.of(row.name)]
    wrote = [f"wrote {path}"]
    if not measured:
        return wrote
    try:
        if stem.name.endswith("labels"):
            picture = _draw_labels(measured, results, stem)
        else:
            picture = _draw(measured, results, distances, stem)
    except ValueError as error:  # no matplotlib: the study goes on
        return [*wrote, f"no picture: {error}"]
    return [*wrote, f"wrote {picture}"]


def cost_of(row: Row, results: Results) -> float | None:
    """Seconds of pre-training relative to the default row, medians of the seeds."""
    seconds = {name: _seconds(name, results) for name in (row.name, DEFAULT)}
    if not all(seconds.values()):
        return None
    return statistics.median(seconds[row.name]) / statistics.median(seconds[DEFAULT])


def _seconds(name: str, results: Results) -> list[float]:
    return [result.seconds for result in results.of(name) if result.seconds is not None]


def _cells(row: Row, results: Results) -> list[str]:
    found, published, cost = results.of(row.name), row.published(), cost_of(row, results)
    losses = [result.loss for result in found if result.loss is not None]
    return [
        row.name,
        row.changes(),
        with_spread([result.acc1 for result in found], 2) if found else "",
        str(len(found)),
        "" if published is None else f"{published:.1f}",
        "" if cost is None else f"{cost:.2f}",
        with_spread(losses, 4) if losses else "",
    ]


def _distances(rows: Sequence[Row]) -> dict[str, float]:
    """AvgDist of each row's masks, between the centres of patches, in pixels."""
    return {row.name: _distance(row.recipe) for row in rows if row.recipe is not None}


@functools.cache  # a report is written after every row
def _distance(recipe: Path) -> float:
    cfg = get_config(recipe)
    with torch.device("meta"):
        patch_size = build_encoder(cfg).patch_size
    torch.manual_seed(0)
    draw = build_mask(cfg, patch_size)
    # Patches as pixels of size 1: distances between pixels, which take longer, are not needed.
    return statistics.fmean(patch_size * average_distance(draw(), 1)[0] for _ in range(_DRAWS))


def _draw(rows: Sequence[Row], results: Results, distances: dict[str, float], stem: Path) -> str:
    """Accuracy of each row against AvgDist, or against cost."""
    chart = new_chart(7, 4)
    axes = chart.subplots()
    for row in rows:
        accuracies = [result.acc1 for result in results.of(row.name)]
        place = distances.get(row.name) if distances else cost_of(row, results)
        if place is None:
            continue
        axes.plot([place] * len(accuracies), accuracies, "o", markersize=4)
        axes.annotate(row.name, (place, max(accuracies)), fontsize=6, rotation=20)
    label = "AvgDist, pixels" if distances else "cost relative to the default row"
    axes.set(xlabel=label, ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.margins(x=0.25, y=0.2)  # for the names
    return save_chart(chart, f"{stem}.png")


def _draw_labels(rows: Sequence[Row], results: Results, stem: Path) -> str:
    """The best rate of each start, against the number of labels."""
    best: dict[str, dict[int, float]] = {}
    for row in rows:
        _, number, start, _ = row.name.split("_")
        accuracy = statistics.fmean(result.acc1 for result in results.of(row.name))
        curve = best.setdefault(start, {})
        curve[int(number)] = max(accuracy, curve.get(int(number), 0.0))
    chart = new_chart(7, 4)
    axes = chart.subplots()
    for start, curve in best.items():
        axes.plot(*zip(*sorted(curve.items()), strict=True), marker="o", label=start)
    axes.set(xlabel="labels of each class", ylabel="top-1 accuracy, %", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return save_chart(chart, f"{stem}.png")
