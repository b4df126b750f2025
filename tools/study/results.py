"""The results of a study: a CSV file, in which finished rows are known, and what is made of it."""

import csv
import dataclasses
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.study.runs import Job, Result
from utils.files import write_whole

_FIELDS = [field.name for field in dataclasses.fields(Result)]


class Results:
    """Results in a file, one for a row and seed; ValueError where it is no such file."""

    def __init__(self, path: Path) -> None:
        self.path, self.all = path, _read(path)

    def require_settings(self, jobs: Sequence[Job]) -> None:
        """ValueError where a result of one of the rows, of any seed, is that of another recipe."""
        recipes = {job.row.name: job.digest() for job in jobs}
        for result in self.all:
            if (now := recipes.get(result.row, result.recipe)) != result.recipe:
                raise ValueError(
                    f"{self.path} has a result of {result.row}, seed {result.seed}, with other "
                    f"settings (recipe {result.recipe}, now {now}): remove its line, or give "
                    "another --results"
                )

    def knows(self, job: Job) -> bool:
        """Whether the job's result is known."""
        return (job.row.name, job.seed) in map(_place, self.all)

    def add(self, *results: Result) -> None:
        """Add results to the file, beside those that another study has added meanwhile.

        ValueError where it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        others = (known for known in _read(self.path) if _place(known) not in map(_place, results))
        self.all = [*others, *results]
        text = io.StringIO()
        writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(known) for known in self.all)
        write_whole(self.path, lambda file: file.write(text.getvalue().encode()))

    def of(self, row: str) -> list[Result]:
        """The results of a row, one for each seed."""
        return [result for result in self.all if result.row == row]


def _read(path: Path) -> list[Result]:
    """Results in a file; none where there is no file."""
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != _FIELDS:
                raise ValueError(f"its columns are {reader.fieldnames}")
            found = [_parse(line) for line in reader]
        for (row, seed), number in Counter(map(_place, found)).items():
            if number > 1:
                raise ValueError(f"{number} lines are of {row}, seed {seed}")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{path} holds no results of a study ({error}): expected the columns "
            f"{','.join(_FIELDS)}; correct it, or give another --results"
        ) from None
    return found


def _place(result: Result) -> tuple[str, int]:
    return result.row, result.seed


def _parse(line: dict[str, str]) -> Result:
    loss, seconds = (float(line[name]) if line[name] else None for name in ("loss", "seconds"))
    if None in line:
        raise ValueError(f"a line is {list(line.values())}")
    return Result(
        line["row"], int(line["seed"]), line["recipe"], float(line["acc1"]), loss, seconds
    )


def with_spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there are several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
