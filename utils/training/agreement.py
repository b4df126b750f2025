"""What the processes of a run compare with each other before the first update."""

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from utils.checkpoints.state import TrainState
from utils.config import stage_of
from utils.config.limits import TARGET_FILES
from utils.device import choose_precision, dtype_name
from utils.digest import digest_of, digest_of_file
from utils.processes.agreement import digest_of_bits, require_agreement
from utils.processes.group import world_size
from utils.processes.sharding import is_sharded
from utils.versions import code, packages

# Machines may differ in these: folders are mounted in other places, and a process has other cores.
_PATHS = ("DATA.DATA_PATH", "DATA.VAL_LABELS", "MODEL.RESUME", "OUTPUT", "PRETRAINED")
_OF_A_MACHINE = ("DEVICE", "DATA.NUM_WORKERS")


def facts_of_start(cfg: CfgNode, device: torch.device) -> dict[str, str]:
    """Configuration, precision, packages and code, as far as they must be equal."""
    # Results do not depend on the last part of Python's version, in which machines may differ.
    facts = packages() | {"python": ".".join(platform.python_version_tuple()[:2])}
    for key, value in _flat(cfg):
        if key in _PATHS:
            facts[key] = "a path" if value else "not set"
        elif key in TARGET_FILES:
            # What lies there is what is learned; where there is none, the target's error says so.
            facts[f"the content of {key}"] = digest_of_file(str(value))
        elif key not in _OF_A_MACHINE:
            facts[key] = repr(value)
    precisions = {"training": cfg.TRAIN.PRECISION}
    if stage_of(cfg) != "pre-training":
        precisions["evaluation"] = cfg.TEST.PRECISION
    for key, wanted in precisions.items():
        facts[f"the precision of {key}"] = dtype_name(choose_precision(wanted, device))
    return facts | {f"the digest of {file}": digest for file, digest in code().items()}


def require_same_parts(
    model: nn.Module, data: Mapping[str, Any], classes: Sequence[str] = ()
) -> None:
    """Compare data sets, classes and the model's weights; call it in all processes.

    ValueError in all of them where one has others. `data` are data sets by their purpose. The model
    is not yet distributed: afterwards the weights of process 0 would replace the others'.
    """
    if world_size() == 1:
        return
    facts = {}
    for purpose, dataset in data.items():
        facts[f"the number of {purpose} pictures"] = str(len(dataset))
        facts[f"the digest of the names, order and labels of {purpose} pictures"] = (
            dataset.pictures.digest
        )
    facts["the number of classes"] = str(len(classes))
    facts["the digest of classes"] = digest_of("\n".join(classes).encode(errors="surrogateescape"))
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    facts["the number of parameters"] = str(sum(math.prod(shape) for _, shape in shapes))
    facts["the digest of their names and shapes"] = digest_of(repr(shapes).encode())
    facts["the digest of the weights"] = digest_of_bits(model.parameters())
    require_agreement(facts)


def require_same_state(state: TrainState) -> None:
    """Compare position and weights after a resume; call it in all processes.

    ValueError in all of them where one has others. Of a sharded model no process has all weights.
    """
    if world_size() == 1:
        return
    facts = {f"the position's {name}": str(value) for name, value in vars(state.position).items()}
    for name, model in ({} if is_sharded(state.model) else state.models()).items():
        facts[f"the digest of the weights of {name}"] = digest_of_bits(model.parameters())
    require_agreement(facts)


def _flat(section: CfgNode, before: str = "") -> Iterator[tuple[str, object]]:
    """Keys such as DATA.BATCH_SIZE, with their values."""
    for name, value in section.items():
        if isinstance(value, CfgNode):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
