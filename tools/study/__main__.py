"""Train the rows of a table of the paper: pre-training, then fine-tuning that measures it.

python -m tools.study --table masks --data-path DIR [--scale cifar10] [--rows ROW ...]
    runs what is not finished, goes on with what was interrupted, one run on each GPU
python -m tools.study --table masks --dry-run
    lists the rows: what they change, the paper's accuracy, what is finished

Tables: masks, heads, targets, resolution, scope, schedule; with --scale cifar10 also labels
(fine-tuning with few labels, pre-trained and from fresh weights). DIR holds train and val.
Results go to OUTPUT/SCALE.csv, and with the paper's numbers to OUTPUT/SCALE__TABLE.md and .png.
"""

import argparse

from tools.study.rows import SCALES, TABLES, require_own_settings, rows_of
from utils.config.arguments import make_parser, positive_integer, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.study", __doc__, ("--data-path", "--opts"), recipe="--table T")
    add = parser.add_argument
    add("--table", choices=TABLES, metavar="T", help="[the rows of all, without a report]")
    add("--scale", choices=SCALES, default="imagenet", help="[imagenet]")
    add(
        "--rows",
        nargs="+",
        action="extend",
        default=[],
        metavar="ROW",
        help="names or patterns [*]",
    )
    add("--seeds", nargs="+", action="extend", type=int, metavar="N", help="[0]")
    add("--output", metavar="DIR", help="[output/study/SCALE]")
    add("--results", metavar="FILE", help="CSV of finished rows [OUTPUT/SCALE.csv]")
    add("--gpus-per-run", type=positive_integer, default=1, metavar="N", help="[1]")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="list rows, train none")
    only.add_argument("--print-commands", action="store_true", help="for a scheduler")
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import shlex
import signal
import sys
from pathlib import Path

from models import target_file
from tools.study.report import write_report
from tools.study.results import Results
from tools.study.runs import Job, Run, Settings, make_job
from tools.study.schedule import Schedule, gpu_slots, name_of
from utils.processes.exit_status import run_program


def main() -> None:
    """Read the command line; list, print or run the rows; write the report."""
    arguments = read_arguments()
    scale = SCALES[arguments.scale]
    output = Path(arguments.output or f"output/study/{arguments.scale}")
    rows = rows_of(scale, arguments.table, arguments.rows)
    if not rows:
        raise ValueError(f"--table {arguments.table} has no rows for --scale {arguments.scale}")
    require_own_settings(rows, arguments.opts)
    settings = Settings(
        scale, arguments.data_path or "", output, arguments.gpus_per_run, tuple(arguments.opts)
    )
    results = Results(Path(arguments.results or output / f"{arguments.scale}.csv"))
    seeds = dict.fromkeys(arguments.seeds or [0])
    jobs = [make_job(row, seed, settings) for row in rows for seed in seeds]
    reported = rows_of(scale, arguments.table, []) if arguments.table else rows
    results.require_settings([make_job(row, 0, settings) for row in reported])
    waiting = [job for job in jobs if not results.knows(job)]
    if arguments.dry_run:
        list_jobs(jobs, waiting)
    elif arguments.print_commands:
        print_commands(waiting, settings.gpus)
    else:
        train(arguments, settings, results, waiting)


def list_jobs(jobs: list[Job], waiting: list[Job]) -> None:
    """Print a line for each row and seed."""
    for job in jobs:
        state = "known" if job not in waiting else "trained" if job.is_finished() else "to train"
        published = job.row.published()
        paper = "" if published is None else f"; the paper's {published:.1f} %"
        print(f"{name_of(job)}: {state}{paper}; {job.row.changes() or 'the default row'}")
    print(f"{len(waiting)} of {len(jobs)} to train")


def print_commands(jobs: list[Job], gpus: int) -> None:
    """Print a line for each pre-training, with all that starts from it: lines can run at once."""
    lines: dict[Path, dict[Path, Run]] = {}
    for job in jobs:
        unfinished = {run.folder: run for run in job.runs if run.last_checkpoint() is None}
        lines.setdefault(job.runs[0].folder, {}).update(unfinished)
    if not any(lines.values()):  # a scheduler reads the other stream
        print("nothing is left to train: the study without this flag reports it", file=sys.stderr)
    for runs in filter(None, lines.values()):
        print(" && ".join(shlex.join(run.command(gpus)) for run in runs.values()))


def train(
    arguments: argparse.Namespace, settings: Settings, results: Results, jobs: list[Job]
) -> None:
    """Train all jobs; ValueError at the end where some have failed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)  # ends the programs, which save
    require_inputs(jobs, settings.data)
    slots = gpu_slots(settings.gpus)
    if jobs:
        results.add()  # what cannot be written is found before days of training
    print(f"{len(jobs)} row(s) to train, {len(slots)} at a time; results go to {results.path}")

    stem = settings.output / f"{arguments.scale}__{arguments.table}"
    rows = rows_of(settings.scale, arguments.table, []) if arguments.table else []

    def report() -> list[str]:
        return write_report(rows, results, stem) if rows else []

    failed = Schedule(settings, results, slots).run(jobs, report)
    print("".join(f"{line}\n" for line in report()), end="")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} row(s): {'; '.join(failed)}")


def require_inputs(jobs: list[Job], data: str) -> None:
    """ValueError where pictures or the file of a target are missing: else days may pass first."""
    files = {target_file(run.cfg): job.row.name for job in jobs for run in job.runs}
    for path, what in ({data: "--data-path"} | files).items():
        if path and not Path(path).exists():
            raise ValueError(f"there is no {path} ({what})")


if __name__ == "__main__":
    run_program(main)
