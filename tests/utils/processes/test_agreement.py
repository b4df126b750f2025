"""Processes that must be equal and are not: real ones, each with a command line of its own."""

import itertools
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import main_simmim
from models import build_pretrain_model
from tests.support.kills import forked, free_port, work
from tests.support.pairs import end_of_pair, place_of, start_pair
from tests.support.picture_files import write_classes
from tests.support.small_runs import (
    ROOT,
    checkpoint_of,
    pictures_in,
    run_folder,
    run_here,
    snapshot,
    write_config,
    write_finetune_config,
)
from utils import versions
from utils.config import get_config
from utils.processes import group
from utils.processes.agreement import (
    bits_of,
    digest_of_bits,
    parted_replicas,
    require_agreement,
)
from utils.processes.comparison import differences_in
from utils.training.agreement import facts_of_start
from utils.training.losses import ComputeLoss, pretrain_loss


def refusal(folder: Path, *commands: list[Any], program: str = "main_simmim", **more: Any) -> str:
    """What two processes say that must be refused, without the ranks; nothing may be written."""
    processes = start_pair(folder, commands, program, **more)
    statuses, lines = end_of_pair(folder, processes)
    assert statuses == [2, 2], lines
    words = [re.sub(r"^(rank \d: )?error: ", "", line) for line in lines]
    assert words[0] == words[1]
    assert not list(folder.rglob("config.yaml"))
    return words[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        (["--batch-size", 2], ["--batch-size", 4], "DATA.BATCH_SIZE is 2 in rank 0, 4 in rank 1"),
        (["--opts", "SEED", 1], ["--opts", "SEED", 2], "SEED is 1 in rank 0, 2 in rank 1"),
        ([], ["--opts", "DATA.MASK_RATIO", 0.5], "DATA.MASK_RATIO is 0.6 in rank 0, 0.5 in"),
        ([], ["--opts", "MODEL.SWIN.EMBED_DIM", 32], "MODEL.SWIN.EMBED_DIM is 16 in rank 0, 32"),
        ([], ["--opts", "TRAIN.SHARDING", "full"], "TRAIN.SHARDING is 'none' in rank 0, 'full' in"),
        (
            ["--opts", "TRAIN.PRECISION", "float32"],
            ["--opts", "TRAIN.PRECISION", "bfloat16"],
            "the precision of training is float32 in rank 0, bfloat16 in rank 1",
        ),
        (["--resume", "x.pth"], [], "MODEL.RESUME is a path in rank 0, not set in rank 1"),
    ],
    ids=["batch size", "seed", "an option", "model", "sharding", "precision", "resuming"],
)
def test_processes_of_other_configurations_are_refused_before_they_form_a_group(
    tmp_path: Path, first: list[Any], second: list[Any], difference: str
) -> None:
    common = ["--cfg", write_config(tmp_path), "--output", tmp_path / "out"]
    line = refusal(tmp_path, [*common, *first], [*common, *second])
    assert line.startswith("the processes do not agree: ")
    assert difference in line
    assert line.endswith("start all of them with the same command, code, packages and data")


def fewer(folder: Path) -> None:
    (folder / "n02" / "n02.4.JPEG").unlink()


def renamed(folder: Path) -> None:
    (folder / "n02" / "n02.4.JPEG").rename(folder / "n02" / "n02.5.JPEG")


def other_class(folder: Path) -> None:
    (folder / "n02").rename(folder / "n03")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (fewer, "the number of training pictures is 10 in rank 0, 9 in rank 1"),
        (renamed, "the digest of the names, order and labels of training pictures is"),
    ],
    ids=["number", "names"],
)
def test_processes_with_other_pictures_are_refused(
    tmp_path: Path, change: Callable[[Path], None], difference: str
) -> None:
    folders = [write_classes(tmp_path / name, 5) for name in ("one", "other")]
    change(folders[1])
    common = ["--cfg", write_config(tmp_path), "--batch-size", 2, "--output", tmp_path / "out"]
    line = refusal(tmp_path, *([*common, *pictures_in(folder)] for folder in folders))
    assert difference in line


@pytest.mark.slow
def test_processes_with_other_classes_or_starting_weights_are_refused(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("one", "other")]
    for root in roots:
        write_classes(root / "train", 5)
        write_classes(root / "val", 2)
    for part in ("train", "val"):
        other_class(roots[1] / part)
    cfg = write_finetune_config(tmp_path)
    encoder = build_pretrain_model(get_config(str(write_config(tmp_path))))
    files = [tmp_path / name for name in ("one.pth", "other.pth")]
    for file in files:
        torch.save({"model": encoder.state_dict()}, file)
        with torch.no_grad():
            encoder.get_parameter("encoder.patch_embed.proj.bias")[0] += 1
    common = ["--cfg", cfg, "--batch-size", 2, "--output", tmp_path / "out"]
    commands = [
        [*common, "--pretrained", file, *pictures_in(root)]
        for file, root in zip(files, roots, strict=True)
    ]
    line = refusal(tmp_path, *commands, program="main_finetune")
    pictures = "the names, order and labels of"
    for what in (
        f"{pictures} training pictures",
        f"{pictures} validation pictures",
        "classes",
        "the weights",
    ):
        assert f"the digest of {what} is" in line
    assert "the digest of their names" not in line, "the models are equal"


@pytest.mark.slow
def test_processes_that_resume_from_other_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, outputs = write_config(tmp_path), [tmp_path / name for name in ("one", "other")]
    options = ["--opts", "PICTURE_FREQ", 0, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.EPOCHS"]
    assert run_here(monkeypatch, cfg, "--output", outputs[0], *options, 1) == 0
    shutil.copytree(outputs[0], outputs[1])
    state = checkpoint_of(outputs[1], 0)
    next(iter(state["model"].values())).view(-1)[0] += 1
    torch.save(state, run_folder(outputs[1]) / "ckpt_epoch_0.pth")
    before = [snapshot(output) for output in outputs]
    commands = [["--cfg", cfg, "--output", output, *options, 2] for output in outputs]
    statuses, lines = end_of_pair(tmp_path, start_pair(tmp_path, commands))
    assert statuses == [2, 2], lines
    assert all("the digest of the weights of model is" in line for line in lines)
    assert [snapshot(output) for output in outputs] == before


def start_in(tree: Path, rank: int, port: str, arguments: list[str], log: str) -> None:
    """A process of a run that executes the code below `tree`."""
    versions._ROOT = tree
    work("main_simmim", arguments, place_of(rank, port), log)


@pytest.mark.slow
def test_processes_that_run_other_code_are_refused(tmp_path: Path) -> None:
    tree, port = tmp_path / "tree", free_port()
    for path in [*ROOT.glob("*.py"), *(ROOT / "models").glob("*.py")]:
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for name in ("data", "utils"):
        (tree / name).symlink_to(ROOT / name)
    with open(tree / "models" / "layers.py", "a") as file:
        file.write("# another line\n")
    arguments = ["--cfg", str(write_config(tmp_path)), "--output", str(tmp_path / "out")]
    processes = []
    for rank, root in enumerate((ROOT, tree)):
        task = (root, rank, port, arguments, str(tmp_path / f"{rank}.log"))
        processes.append(forked().Process(target=start_in, args=task))
        processes[-1].start()
    statuses, lines = end_of_pair(tmp_path, processes)
    assert statuses == [2, 2], lines
    said = r"the digest of models/layers\.py is \w{8} in rank 0, \w{8} in rank 1; start all"
    assert all(re.match(f"error: the processes do not agree: {said}", line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"WORLD_SIZE": "3"}, "the number of processes is 2 in rank 0, 3 in rank 1"),
        ({"WORLD_SIZE": "4", "RANK": "3"}, "rank 1 did not come within 3 s (TRAIN.LOST_AFTER)"),
        ({"RANK": "0"}, "EADDRINUSE"),
    ],
    ids=["sizes", "missing", "same rank"],
)
def test_processes_that_are_numbered_wrongly_are_refused(
    tmp_path: Path, second: dict[str, str], expected: str
) -> None:
    common = ["--cfg", write_config(tmp_path), "--opts", "TRAIN.LOST_AFTER", 3]
    processes = start_pair(tmp_path, [common, common], environments=({}, second))
    statuses, lines = end_of_pair(tmp_path, processes)
    assert statuses == [2, 2], lines
    assert expected in " ".join(lines)


def train_apart(rank: int, port: str, arguments: list[str], log: str, cpu: str) -> None:
    """A process of a run; in the second one a bit flips before the sixth update computes."""
    updates = itertools.count()

    def faulty(normalize: Any) -> ComputeLoss:
        compute = pretrain_loss(normalize)

        def compute_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
            if rank == 1 and next(updates) == 5:
                next(model.parameters()).detach().view(torch.int32).view(-1)[0] ^= 1
            return compute(model, batch)

        return compute_loss

    main_simmim.pretrain_loss = faulty
    group.hardware_of = lambda device: {"the CPU": cpu}
    work("main_simmim", arguments, place_of(rank, port), log)


def end_of_parted(folder: Path, cpus: Sequence[str]) -> tuple[list[int | None], list[str]]:
    """Three epochs of four updates, in the second of which the replicas part."""
    port = free_port()
    arguments = ["--cfg", str(write_config(folder)), "--output", str(folder / "out")]
    arguments += ["--opts", "TRAIN.EPOCHS", "3", "PICTURE_FREQ", "0"]
    processes = []
    for rank, cpu in enumerate(cpus):
        task = (rank, port, arguments, str(folder / f"{rank}.log"), cpu)
        processes.append(forked().Process(target=train_apart, args=task))
        processes[-1].start()
    return end_of_pair(folder, processes)


@pytest.mark.slow
def test_replicas_that_part_are_not_saved(tmp_path: Path) -> None:
    statuses, lines = end_of_parted(tmp_path, ["one model", "one model"])
    assert statuses == [2, 2], lines
    for line in lines:
        assert "the weights of rank 1 of 2 processes are no longer those of rank 0" in line
        assert "parted between update 4 and update 8" in line
    saved = run_folder(tmp_path / "out").glob("*.pth")
    assert [path.name for path in saved] == ["ckpt_epoch_0.pth"]


@pytest.mark.slow
def test_replicas_on_different_devices_may_part_with_a_warning(tmp_path: Path) -> None:
    statuses, lines = end_of_parted(tmp_path, ["one model", "another"])
    assert statuses == [0, 0], lines
    said = (tmp_path / "0.log").read_text()
    mixed = "the CPU is one model in rank 0, another in rank 1"
    assert f"the machines differ, and so may their last digits: {mixed}" in said
    assert said.count("the weights of rank 1 of 2 processes differ from those of rank 0") == 2


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.complex64, torch.complex128],
)
def test_the_digest_of_weights_tells_one_bit_apart(dtype: torch.dtype) -> None:
    weights = [torch.arange(6).to(dtype).view(2, 3), torch.ones(4, 2, dtype=dtype).T]
    before = digest_of_bits(weights)
    assert digest_of_bits([tensor.clone() for tensor in weights]) == before
    weights[0].view(torch.uint8)[1, 1] ^= 1
    assert digest_of_bits(weights) != before


def test_the_bits_of_a_tensor_are_added_as_integers() -> None:
    sums = bits_of([torch.tensor([1.0, -2.0]), torch.zeros(3, 2).T])
    assert sums.tolist() == [0x3F800000 + 0xC0000000 - 2**32, 0]


def test_what_differs_is_named_with_the_values_of_the_first_processes() -> None:
    same = {"a": "1", "b": "2"}
    assert differences_in([same, dict(same), dict(same)]) == ""
    assert differences_in([same, {"a": "1", "b": "3"}]) == "b is 2 in rank 0, 3 in rank 1"
    words = differences_in([same, same, {"a": "4"}, {"a": "5", "b": "2"}])
    assert (
        words
        == "a is 1 in rank 0, 4 in rank 2 (and in 1 more); b is 2 in rank 0, not there in rank 2"
    )
    many = [{str(key): str(rank) for key in range(9)} for rank in range(2)]
    assert differences_in(many).endswith("3 is 0 in rank 0, 1 in rank 1; 5 more")


def test_one_process_agrees_with_itself() -> None:
    require_agreement({"a": "1"})
    assert parted_replicas([torch.ones(1)]) == ""


def test_facts_are_only_those_that_a_stage_depends_on() -> None:
    cpu = torch.device("cpu")
    facts = facts_of_start(get_config(None, ["MODEL.NAME", "pretrain"]), cpu)
    assert facts["python"].count(".") == 1  # 3.12.4 and 3.12.7 compute the same
    only_evaluation = ["TEST.PRECISION", "float16"]  # which a CPU cannot
    facts_of_start(get_config(None, ["MODEL.NAME", "pretrain", *only_evaluation]), cpu)
    with pytest.raises(ValueError, match="a precision is float16, which needs a CUDA GPU"):
        facts_of_start(get_config(None, ["MODEL.NAME", "finetune", *only_evaluation]), cpu)
