"""Start the runs of a study, several at once where there are several GPUs."""

import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch

from tools.study.results import Results
from tools.study.runs import Job, Run, Settings


@dataclass
class Schedule:
    """The jobs of a study and the GPUs that they take in turn."""

    settings: Settings
    results: Results
    slots: list[str]  # of CUDA_VISIBLE_DEVICES, one for each run at a time
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # of both

    def run(self, jobs: Sequence[Job], each: Callable[[], object]) -> list[str]:
        """Finish all jobs; call `each` after one. Return a line for every job that failed.

        A stop ends the programs that run, which save first.
        """
        free: queue.Queue[str] = queue.Queue()
        for slot in self.slots:
            free.put(slot)
        shared: dict[Path, threading.Lock] = {}  # rows may start from the same pre-training
        for job in jobs:
            shared.update({run.folder: threading.Lock() for run in job.runs})
        failed, begin = [], time.monotonic()
        pool = ThreadPoolExecutor(len(self.slots))
        try:
            futures = {pool.submit(self._finish, job, free, shared): job for job in jobs}
            for number, future in enumerate(as_completed(futures), start=1):
                job, failure = futures[future], future.result()
                left = (time.monotonic() - begin) / number * (len(jobs) - number)
                done = f"[{number}/{len(jobs)}] {name_of(job)}: "
                try:
                    if not failure:
                        self.results.add(result := job.result())
                        done += str(result)
                except (ValueError, OSError, LookupError, TypeError) as error:
                    failure = f"has no result: {error}"
                print(f"{done}{failure}; about {timedelta(seconds=int(left))} left", flush=True)
                failed += [f"{name_of(job)} {failure}"] if failure else []
                each()
        finally:
            with self.lock:
                self.stopping = True
                for process in self.started:
                    process.terminate()  # nothing happens to one that has ended
            pool.shutdown(cancel_futures=True)
        return failed

    def _finish(
        self, job: Job, free: "queue.Queue[str]", shared: dict[Path, threading.Lock]
    ) -> str:
        """Run what is not finished; the reason why it cannot be, or ''."""
        slot = free.get()
        try:
            job.require_order()
            for run in job.runs:
                with shared[run.folder]:
                    failure = "" if run.last_checkpoint() else self._run(run, slot)
                if failure:
                    return failure
        except (ValueError, OSError) as error:
            return f"failed: {error}"
        finally:
            free.put(slot)
        return ""

    def _run(self, run: Run, slot: str) -> str:
        """Start a program, wait for its end; what went wrong, or ''."""
        log = self.settings.output / "logs" / f"{run.cfg.MODEL.NAME}__{run.folder.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{run.program} for {run.folder.name}: its log is {log}", flush=True)
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": slot} if slot else {})
        with open(log, "ab") as file, self.lock:
            if self.stopping:
                return "is not started"
            process = subprocess.Popen(
                run.command(self.settings.gpus),
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches it once, from here
            )
            self.started.append(process)
        status = process.wait()
        if status == 0 and run.last_checkpoint() is None:
            return f"ended without its last checkpoint: see {log}"
        return f"failed with status {status} ({_last_line(log)}): see {log}" if status else ""


def name_of(job: Job) -> str:
    """The job in messages."""
    return f"{job.row.name}, seed {job.seed}"


def gpu_slots(gpus_per_run: int) -> list[str]:
    """Groups of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them; [''] without GPUs.

    ValueError where there are fewer than one run takes.
    """
    number = torch.cuda.device_count()
    if number == 0 and gpus_per_run == 1:
        return [""]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(index) for index in range(number)]
    if number < gpus_per_run:
        raise ValueError(f"--gpus-per-run is {gpus_per_run}, but {number} GPU(s) are visible here")
    starts = range(0, number - gpus_per_run + 1, gpus_per_run)
    return [",".join(names[start : start + gpus_per_run]) for start in starts]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it has said nothing")
