"""Device and precision choices."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from data.build import _start_worker
from tests.support.small_encoders import sample, small_model
from tests.support.small_runs import equal
from utils.device import choose_device, choose_precision, own_gpu, prepare_process, use_device

CPU = torch.device("cpu")


class Product:
    """A data set of one product, which a worker computes."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(1e-30) * torch.tensor(1e-10)


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_a_cpu_computes_in_bfloat16_or_float32_and_never_in_float16() -> None:
    assert choose_precision("auto", CPU) in (torch.bfloat16, torch.float32)
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    assert choose_precision("float32", CPU) == torch.float32
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        choose_precision("float16", CPU)


@pytest.mark.parametrize(
    ("variables", "index"),
    [
        ({}, 0),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}, 2),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_LOCALID": "3"}, 3),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0),
    ],
)
def test_a_process_takes_the_gpu_of_its_number_on_the_machine(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], index: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert own_gpu(visible=4) == index


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"])
def test_the_only_gpu_that_a_process_is_shown_needs_no_number(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Two processes of one machine would share its only GPU, unless each is shown its own."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for other in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(other, raising=False)
    for nothing in ("", "all"):
        monkeypatch.setenv(name, nothing)
        with pytest.raises(ValueError, match=r"process 1 of 2, .* set LOCAL_RANK"):
            own_gpu(visible=1)
    monkeypatch.setenv(name, "GPU-1b2c")  # as a cluster of containers, or srun, sets it
    assert own_gpu(visible=1) == 0


def test_no_process_of_several_takes_the_first_gpu_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"process 3 of 4, .* set LOCAL_RANK"):
        own_gpu(visible=4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match="process 3 of this machine has no GPU: 2 are visible"):
        own_gpu(visible=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # what srun --gpus-per-task=1 shows it
    assert own_gpu(visible=1) == 0


def test_float32_is_not_rounded_unless_that_is_wanted() -> None:
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        for wanted in (True, False):
            use_device(CPU, tf32=wanted, deterministic=wanted)
            assert products.allow_tf32 == convolutions.allow_tf32 == wanted
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert convolutions.benchmark != wanted
    finally:
        use_device(CPU)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the CPU cannot")
@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_gradients_are_the_same_where_the_smallest_numbers_become_0(kind: str) -> None:
    """Scores of attention under the mask of shifted windows are -100: exp(-100) is such a one."""
    model = small_model(kind, "MODEL.DROP_PATH_RATE", 0.0)
    inputs = sample(model)
    found = []
    try:
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            assert bool(torch.tensor(1e-30) * torch.tensor(1e-10) == 0) == flush
            model.zero_grad()
            model(*inputs).backward()
            found.append([parameter.grad.clone() for parameter in model.parameters()])
    finally:
        torch.set_flush_denormal(False)
    assert equal(*found)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the CPU cannot")
def test_the_smallest_numbers_become_0_in_a_program_and_in_its_loader_workers() -> None:
    try:
        prepare_process()
        assert torch.tensor(1e-30) * torch.tensor(1e-10) == 0
        torch.set_flush_denormal(False)
        loader: Any = DataLoader(Product(), worker_init_fn=_start_worker, num_workers=1)  # type: ignore[arg-type]  # any object with the two methods
        assert [float(product) for product in loader] == [0.0]
    finally:
        torch.set_flush_denormal(False)
