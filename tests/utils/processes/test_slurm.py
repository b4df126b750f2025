"""Jobs that a real Slurm interrupts go on by themselves, with the batch scripts of the page."""

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.docs_code import scripts
from tests.support.kills import Scenario, finish, is_alive, results_of
from tests.support.long_runs import has_trained, wait_for
from tests.support.slurm import Cluster
from tests.support.small_runs import checkpoint_of, equal, run_folder, write_config

ALONE = Scenario("pretrain", 1, 1, "float32", 0)
OPTS = ("SAVE_UPDATES", 0, "DATA.NUM_SHAPES", 160, "TRAIN.LOST_AFTER", 600)
SRUN, SEEDS, TORCHRUN = scripts("robustness.md")
RUN = "main_simmim.py --cfg FILE --data-path DIR"
SECONDS = 150.0  # all jobs share a few cores
Stories = dict[str, Future[Path]]
pytestmark = pytest.mark.xdist_group("slurm")  # one cluster, and each job once


def small(script: str, cfg: Path, output: Path, *opts: object) -> str:
    """A script of the page with a small run; the nodes' names mean nothing to the system."""
    assert script.count(RUN) == 1
    words = [str(cfg), "--output", str(output), "--opts", *ALONE.opts, *map(str, (*OPTS, *opts))]
    script = script.replace("FILE --data-path DIR", shlex.join(words))
    script = script.replace("--nproc_per_node 8", "--nproc_per_node 1")
    script = script.replace("$(scontrol show hostnames | head -n 1)", "127.0.0.1")
    script = script.replace("torchrun --", f"{sys.executable} -m torch.distributed.run --")
    return script.replace("srun python ", f"srun {sys.executable} ")


def submit(
    cluster: Cluster, folder: Path, script: str, *flags: str, opts: tuple[object, ...] = ()
) -> str:
    """Give Slurm a script of the page, with sizes for this machine; the job's number."""
    folder.mkdir()
    path = folder / "job.sh"
    path.write_text(small(script, write_config(folder), folder / "out", *opts))
    sizes = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0", f"--output={folder}/log")
    return cluster.ask("sbatch", "--parsable", *sizes, *flags, str(path)).strip()


def wait_for_end(cluster: Cluster, job: str) -> None:
    """Wait until a job, or each job of an array, has ended well."""
    going = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "PREEMPTED", "NODE_FAIL")
    wait_for(lambda: not set(cluster.states_of(job)) & set(going), SECONDS, pause=0.5)
    assert set(cluster.states_of(job)) == {"COMPLETED"}


def wait_for_training(folder: Path) -> None:
    wait_for(lambda: has_trained(folder / "out"), SECONDS)


def process_of(folder: Path) -> int:
    """The process that has locked the run's folder."""
    owner = json.loads((run_folder(folder / "out") / "run.json").read_text())["process"]
    return int(owner.split()[1])


def near_its_time_limit(cluster: Cluster, folder: Path) -> None:
    """Slurm looks at limits every 30 s: the run is stopped until then, and Slurm continues it."""
    job = submit(cluster, folder, SRUN)
    wait_for_training(folder)
    process = process_of(folder)
    os.kill(process, signal.SIGSTOP)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    wait_for(lambda: not is_alive(process), SECONDS)
    wait_for(lambda: cluster.states_of(job) == ["PENDING"], SECONDS, pause=0.5)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_for_end(cluster, job)


def requeued(cluster: Cluster, folder: Path) -> None:
    job = submit(cluster, folder, SRUN)
    wait_for_training(folder)
    cluster.ask("scontrol", "requeue", job)
    wait_for_end(cluster, job)


def told_by_scancel(cluster: Cluster, folder: Path) -> None:
    job = submit(cluster, folder, TORCHRUN)
    wait_for_training(folder)
    cluster.ask("scancel", "--signal=TERM", job)
    wait_for_end(cluster, job)


def an_array(cluster: Cluster, folder: Path) -> None:
    """One of its jobs is told to stop: the one that has the number of the array."""
    script = SRUN.replace(f"srun python {RUN}", SEEDS.strip())
    job = submit(cluster, folder, script, "--array=0-2", f"--output={folder}/log_%a")
    wait_for(lambda: has_trained(folder / "out", tag="seed_2"), SECONDS)
    cluster.ask("scancel", "--signal=TERM", f"{job}_2")
    wait_for_end(cluster, job)


def on_a_lost_node(cluster: Cluster, folder: Path) -> None:
    """Its slurmd is gone, and the run that it had started hangs until there is a new one."""
    job = submit(cluster, folder, SRUN, "--partition=frail", opts=("SAVE_UPDATES", 1))
    wait_for_training(folder)
    process = process_of(folder)
    os.kill(process, signal.SIGSTOP)
    node = cluster.ask("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
    cluster.kill(node)
    wait_for(lambda: "is in use by" in (folder / "log").read_text(), SECONDS)
    cluster.start(node)
    wait_for(lambda: not is_alive(process), SECONDS)
    wait_for_end(cluster, job)


TALES = (on_a_lost_node, near_its_time_limit, requeued, told_by_scancel, an_array)


@pytest.fixture(scope="module")
def stories(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stories]:
    """All jobs at once: most of their time is Slurm's waiting."""
    place = tmp_path_factory.mktemp("jobs")

    def tell(tale: Callable[[Cluster, Path], None]) -> Path:
        tale(cluster, place / tale.__name__)
        return place / tale.__name__

    with ThreadPoolExecutor(len(TALES)) as pool:
        yield {tale.__name__: pool.submit(tell, tale) for tale in TALES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is left alone."""
    folder = tmp_path_factory.mktemp("whole")
    finish(ALONE, write_config(folder), folder / "out", *OPTS)
    return folder / "out"


def require_same(folder: Path, whole: Path, why: str) -> None:
    """AssertionError where a job was not stopped for that reason, or ended with another run."""
    said = (folder / "log").read_text()
    assert re.search(why, said), said
    assert "resumed from" in said
    found, expected = (results_of(output, "pretrain") for output in (folder / "out", whole))
    assert equal(found[0] | {"config": None}, expected[0] | {"config": None})
    assert equal(found[2], expected[2])


@pytest.mark.slow
def test_a_job_near_its_time_limit_saves_and_goes_on_by_itself(
    stories: Stories, whole: Path
) -> None:
    folder = stories["near_its_time_limit"].result()
    require_same(folder, whole, r"stopped after update \d+ by SIGUSR1")


@pytest.mark.slow
def test_a_job_that_slurm_requeues_saves_and_goes_on(stories: Stories, whole: Path) -> None:
    require_same(stories["requeued"].result(), whole, r"stopped after update \d+ by SIGTERM")


@pytest.mark.slow
def test_a_job_of_torchrun_that_is_told_to_stop_saves_and_goes_on_by_itself(
    stories: Stories, whole: Path
) -> None:
    folder = stories["told_by_scancel"].result()
    require_same(folder, whole, r"stopped after update \d+ by SIGTERM")


@pytest.mark.slow
def test_a_job_goes_on_elsewhere_once_its_lost_node_no_longer_holds_the_folder(
    stories: Stories, whole: Path
) -> None:
    folder = stories["on_a_lost_node"].result()
    require_same(folder, whole, "what this job had started on a lost node: start it again later")


@pytest.mark.slow
def test_an_array_trains_each_seed_in_its_folder_and_only_the_stopped_one_is_requeued(
    tmp_path: Path, stories: Stories
) -> None:
    folder = stories["an_array"].result()
    starts = []
    for seed in range(3):
        starts.append((folder / f"log_{seed}").read_text().count("pre-training of"))
        output = tmp_path / str(seed)
        finish(ALONE, write_config(tmp_path), output, *OPTS, "SEED", seed)
        found = checkpoint_of(folder / "out", 2, f"seed_{seed}")
        assert equal(found["model"], checkpoint_of(output, 2)["model"])
    assert starts == [1, 1, 2]
