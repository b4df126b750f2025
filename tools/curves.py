"""Plot a figure of one or more runs over their updates, from their metrics.jsonl.

python -m tools.curves [LABEL=]FOLDER ... [--figure val_acc1] --picture curves.png

Runs of the same label share a colour. Needs matplotlib (pip install matplotlib).
"""

import argparse

from utils.config.arguments import make_parser, read_early

FIGURES = {
    "val_acc1": "top-1 accuracy, %",
    "val_acc5": "top-5 accuracy, %",
    "val_loss": "validation loss",
    "loss": "training loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_second": "images per second",
}


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.curves", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="[LABEL=]FOLDER")
    parser.add_argument(
        "--figure",
        default="val_acc1",
        choices=FIGURES,
        metavar="NAME",
        help=f"of {', '.join(FIGURES)} [val_acc1]",
    )
    parser.add_argument("--picture", default="curves.png", metavar="FILE", help="[curves.png]")
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import json
from pathlib import Path

from tools.chart import new_chart, save_chart
from utils.messages import shown
from utils.processes.exit_status import run_program


def main() -> None:
    """Read the runs, draw, write the picture."""
    arguments = read_arguments()
    curves = [read_run(run, arguments.figure) for run in arguments.runs]
    picture = draw(curves, arguments.figure, arguments.picture)
    print(f"wrote {picture} ({arguments.figure} of {len(curves)} run(s))")


def read_run(run: str, figure: str) -> tuple[str, list[tuple[int, float]]]:
    """Label and points (update, value) of a run; ValueError where it has none."""
    label, folder = label_and_folder(run)
    path = folder / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    lines = text.splitlines(keepends=True)
    points = []
    for number, line in enumerate(lines, start=1):
        try:
            points += points_of(line, figure)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            if number == len(lines) and not line.endswith("\n"):
                break  # incomplete: the run was killed here, or is writing
            raise ValueError(f"{path}, line {number} is no record: {shown(line)}") from None
    if not points:
        raise ValueError(f"{path} holds no {figure}")
    return label or folder.name, points


def label_and_folder(run: str) -> tuple[str, Path]:
    """Split [LABEL=]FOLDER; both may hold "=", so FOLDER is the longest end that is a folder."""
    parts = run.split("=")
    for at in range(len(parts)):
        folder = Path("=".join(parts[at:]))
        if folder.is_dir():
            return "=".join(parts[:at]), folder
    raise ValueError(f"{shown(run)} is no folder of a run, nor LABEL=FOLDER")


def points_of(line: str, figure: str) -> list[tuple[int, float]]:
    """The point (update, value) of a figure in a line of metrics.jsonl; [] without it."""
    record = json.loads(line)
    value = record.get(figure) if isinstance(record, dict) else None
    if value is None:  # another kind of line, or a skipped update
        return []
    return [(int(float(record["update"])), float(value))]


def draw(curves: list[tuple[str, list[tuple[int, float]]]], figure: str, picture: str) -> str:
    """Draw and write the picture; return its file. ValueError where it cannot be written."""
    chart = new_chart(7, 4)
    axes = chart.subplots()
    colours: dict[str, str] = {}
    for label, points in curves:
        is_new = label not in colours
        colour = colours.setdefault(label, f"C{len(colours)}")
        updates, values = zip(*points, strict=True)
        axes.plot(updates, values, color=colour, label=label if is_new else None, marker=".")
    axes.set(xlabel="update", ylabel=FIGURES[figure])
    axes.grid(alpha=0.3)
    axes.legend()
    return save_chart(chart, picture)


if __name__ == "__main__":
    run_program(main)
