"""The results of a study: a CSV file, in which finished rows are known, and what is made of it."""

import csv
import dataclasses
import io
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path

from tools.study.runs import Job, Result
from utils.files import write_whole

_FIELDS = [field.name for field in dataclasses.fields(Result)]


class Results:
    """Results in a file; ValueError where it is no such file or cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.all: list[Result] = []
        if not path.exists():
            return
        try:
            with open(path, encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != _FIELDS:
                    raise ValueError(f"its columns are {reader.fieldnames}")
                self.all = [_parse(line) for line in reader]
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise ValueError(
                f"{path} holds no results of a study ({error}): expected the columns "
                f"{','.join(_FIELDS)}; give another --results"
            ) from None

    def knows(self, job: Job) -> bool:
        """Whether the job's result is known; ValueError where it is that of another recipe."""
        for result in self.all:
            if (result.row, result.seed) == (job.row.name, job.seed):
                if result.recipe != job.digest():
                    raise ValueError(
                        f"{self.path} has a result of {result.row}, seed {result.seed}, with other "
                        f"settings (recipe {result.recipe}, now {job.digest()}): remove its line, "
                        "or give another --results"
                    )
                return True
        return False

    def add(self, result: Result) -> str:
        """Add a result to the file; return it in words."""
        with self.lock:
            self.all.append(result)
            text = io.StringIO()
            writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(dataclasses.asdict(known) for known in self.all)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, lambda file: file.write(text.getvalue().encode()))
        loss = "" if result.loss is None else f", pre-training loss {result.loss:.4f}"
        return f"{result.acc1:.2f} % top-1{loss}"

    def of(self, row: str) -> list[Result]:
        """The results of a row, one for each seed."""
        return [result for result in self.all if result.row == row]


def _parse(line: dict[str, str]) -> Result:
    loss, seconds = (float(line[name]) if line[name] else None for name in ("loss", "seconds"))
    return Result(
        line["row"], int(line["seed"]), line["recipe"], float(line["acc1"]), loss, seconds
    )


def with_spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there are several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
