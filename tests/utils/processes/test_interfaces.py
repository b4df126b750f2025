"""Machines that find each other whatever their host names say; network namespaces are two."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.support.kills import forked, free_port
from tests.support.machines import two_machines, work_on
from tests.support.pairs import end_of_pair, place_of, start_pair
from tests.support.small_runs import checkpoint_of, equal, run_folder, write_config
from utils.processes import interfaces
from utils.processes.interfaces import VARIABLE, address_towards, choose_interface, is_loopback

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
)
ADDRESSES = {4: ("10.77.0.1", "10.77.0.2"), 6: ("fd77::1", "fd77::2")}


def tensors_of(output: Path, sharding: str) -> Any:
    """Weights and moments of a run after its epoch."""
    if sharding == "none":
        state = checkpoint_of(output, 0)
        return state["model"], state["optimizer"]
    file = output / "one.pth"
    dcp_to_torch_save(run_folder(output) / "ckpt_epoch_0.sharded", file)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
@needs_namespaces
@pytest.mark.parametrize(
    ("version", "sharding"),
    [(4, "none"), (4, "full"), (6, "none")],
    ids=["replicas", "sharded", "IPv6"],
)
def test_two_machines_equal_one_although_their_names_mean_the_loopback_interface(
    tmp_path: Path, version: int, sharding: str
) -> None:
    """Also where the address of process 0 is "localhost" to itself."""
    port, addresses = free_port(), ADDRESSES[version]
    common: list[Any] = ["--cfg", write_config(tmp_path)]
    options: list[Any] = ["--opts", "TRAIN.SHARDING", sharding, "DATA.NUM_SHAPES", 16]
    options += ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "PICTURE_FREQ", 0]
    options += ["TRAIN.LOST_AFTER", 20]
    one, two = tmp_path / "one", tmp_path / "two"
    command = [*common, "--output", one, *options]
    statuses, lines = end_of_pair(tmp_path, start_pair(tmp_path, [command, command]))
    assert statuses == [0, 0], lines
    words = [str(word) for word in (*common, "--output", two, *options)]
    processes = []
    try:
        with two_machines(addresses, version) as machines:
            for rank, machine in enumerate(machines):
                address = "localhost" if rank == 0 else addresses[0]
                own = place_of(rank, port) | {"MASTER_ADDR": address}
                task = (machine, "main_simmim", words, own, str(tmp_path / f"{rank}.log"))
                processes.append(forked().Process(target=work_on, args=task))
                processes[-1].start()
            statuses, lines = end_of_pair(tmp_path, processes)
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    assert statuses == [0, 0], lines
    assert equal(tensors_of(two, sharding), tensors_of(one, sharding))


def test_the_address_towards_a_host_is_of_the_family_of_the_host() -> None:
    assert address_towards("127.0.1.1") == "127.0.0.1"
    assert address_towards("::1") == "::1"
    assert address_towards("no-such-host.invalid") == ""
    assert all(map(is_loopback, ("", "127.0.1.1", "::1")))
    assert not any(map(is_loopback, ("10.77.0.1", "fe80::1%eth0")))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its interfaces")
def test_gloo_uses_the_interface_of_an_address_unless_told_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    choose_interface("192.0.2.77")  # an address of nobody: gloo chooses as it does by default
    assert os.environ[VARIABLE] == ""
    monkeypatch.setattr(interfaces, "_interfaces_of_ipv4", lambda: {bytes([10, 9, 8, 7]): "lo"})
    choose_interface("10.9.8.7")  # routed to the machine, not to one of its cards
    assert os.environ[VARIABLE] == ""
    choose_interface("127.0.1.1")
    assert os.environ[VARIABLE] == "lo"
    monkeypatch.setenv(VARIABLE, "told")
    choose_interface("127.0.0.1")
    assert os.environ[VARIABLE] == "told"
