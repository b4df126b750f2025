"""The rows of a study: recipes of pre-training, in the tables of the paper."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.config.limits import TARGET_FILES
from utils.messages import choose, one_of

FOLDER = Path(__file__).parents[2] / "configs" / "study"
DEFAULT, FINETUNING = "default", "finetune.yaml"
# Table -> patterns of the names of its recipes, after the default row
TABLES = {
    "scope": ("scope_*",),
    "masks": ("mask_*",),
    "targets": ("target_*", "resolution_48", "resolution_6"),
    "heads": ("head_*",),
    "resolution": ("resolution_*",),
    "schedule": ("schedule_*",),
    "labels": (),
}
# The label curve: labels of each class -> epochs over them.
_LABELS = {10: 200, 100: 50, 500: 10, 1000: 10, 5000: 10}
# Start -> the learning rates that are tried, for 512 images
_STARTS = {"pretrained": ("8e-3", "1.6e-2"), "scratch": ("4e-3", "8e-3")}
# What the study gives to each run.
_OF_A_RUN = {"SEED", "TAG", "OUTPUT", "PRETRAINED", "MODEL.NAME", "MODEL.RESUME", "DATA.DATA_PATH"}
_PUBLISHED = re.compile(r"published: ([\d.]+) % top-1")


@dataclass(frozen=True)
class Scale:
    """Where a study's recipes lie, and the processes for which their batch sizes are meant."""

    folder: Path
    processes: int


@dataclass(frozen=True)
class Row:
    """A pre-training (none: fresh weights) and the fine-tuning that measures it."""

    name: str
    recipe: Path | None
    finetuning: Path
    opts: tuple[str, ...] = ()  # of fine-tuning

    def published(self) -> float | None:
        """The paper's top-1 accuracy, in percent, from the recipe's comment."""
        found = None
        if self.recipe is not None and self.name == self.recipe.stem:
            found = _PUBLISHED.search(self.recipe.read_text(encoding="utf-8"))
        return float(found[1]) if found else None

    def changes(self) -> str:
        """What distinguishes the row, as "KEY value, ..."; not a target's file, which is given."""
        own = {key: value for key, value in self.settings().items() if key not in TARGET_FILES}
        return ", ".join(f"{key} {value}" for key, value in own.items())

    def settings(self) -> dict[str, object]:
        """Keys and values that distinguish the row; none of the default row."""
        if self.recipe is None or self.name != self.recipe.stem:
            return dict(zip(self.opts[::2], self.opts[1::2], strict=True))
        values = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        return {} if self.name == DEFAULT else dict(_settings(values))


SCALES = {
    "imagenet": Scale(FOLDER / "imagenet", 16),
    "cifar10": Scale(FOLDER / "cifar10", 1),
}


def rows_of(scale: Scale, table: str | None, names: Sequence[str]) -> list[Row]:
    """Rows of a table (None: of all), of those only the ones that `names` (or patterns) match.

    ValueError for a name that matches none.
    """
    tables = TABLES if table is None else {table: choose(TABLES, table, "--table")}
    rows = {row.name: row for name in tables for row in _rows_in(scale, name)}
    chosen: dict[str, Row] = {}
    for name in names:
        found = fnmatch.filter(rows, name)
        if not found:
            where = f"table {table}" if table else "the study"
            raise ValueError(f"--rows {name} is no row of {where}: expected {one_of(rows)}")
        chosen.update((match, rows[match]) for match in found)
    return list(chosen.values() if names else rows.values())


def require_own_settings(rows: Sequence[Row], opts: Sequence[str]) -> None:
    """ValueError where options would replace what distinguishes a run or row from others.

    The file of a target may be given.
    """
    if taken := _OF_A_RUN & set(opts[::2]):
        raise ValueError(
            f"--opts {min(taken)} is set for each run: give --seeds, --output or --data-path"
        )
    for row in rows:
        if taken := (row.settings().keys() & set(opts[::2])) - set(TARGET_FILES):
            raise ValueError(
                f"--opts {min(taken)} is what distinguishes the row {row.name} from others: leave "
                "out the key, or the row (--rows)"
            )


def _rows_in(scale: Scale, table: str) -> list[Row]:
    finetuning = scale.folder / FINETUNING
    if table == "labels":
        return _label_rows(scale, finetuning) if scale is SCALES["cifar10"] else []
    paths = [scale.folder / f"{DEFAULT}.yaml"]
    for pattern in TABLES[table]:
        paths += sorted(scale.folder.glob(f"{pattern}.yaml"), key=_natural)
    return [Row(path.stem, path, finetuning) for path in paths]


def _label_rows(scale: Scale, finetuning: Path) -> list[Row]:
    """Fine-tunings with few labels, from the default row's encoder and from fresh weights."""
    rows = []
    for number, epochs in _LABELS.items():
        for start, rates in _STARTS.items():
            recipe = scale.folder / f"{DEFAULT}.yaml" if start == "pretrained" else None
            for rate in rates:
                opts: tuple[str, ...] = (
                    "DATA.IMAGES_PER_CLASS",
                    str(number),
                    "TRAIN.EPOCHS",
                    str(epochs),
                )
                opts += ("TRAIN.BASE_LR", rate, "EVAL_FREQ", str(epochs), "SAVE_FREQ", str(epochs))
                # Layer-wise decay is meant for layers that have learned.
                opts += () if recipe else ("TRAIN.LAYER_DECAY", "1.0")
                rows.append(Row(f"labels_{number}_{start}_lr{rate}", recipe, finetuning, opts))
    return rows


def _natural(path: Path) -> list[tuple[float, str]]:
    """Order names by the numbers in them."""
    parts = re.split(r"(\d+\.?\d*)", path.stem)
    return [(float(part), "") if part[:1].isdigit() else (0.0, part) for part in parts]


def _settings(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Keys and values of a recipe's own lines."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif key not in ("BASE", "TAG"):
            yield f"{prefix}{key}", value
