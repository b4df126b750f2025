"""The command line that entry points and tools share: flags, each of them a config key."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode

from utils.checks import shown
from utils.config import get_config

_LARGEST = 10.0**15  # of a number, and the inverse of the smallest

# Flag -> config key and what argparse needs; a flag that is not given changes nothing.
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--data-path": (
        "DATA.DATA_PATH",
        dict(metavar="DIR", help="images; to fine-tune: with train/, val/"),
    ),
    "--batch-size": ("DATA.BATCH_SIZE", dict(type=int, metavar="N", help="images per process")),
    "--accumulation-steps": (
        "TRAIN.ACCUMULATION_STEPS",
        dict(type=int, metavar="K", help="micro-batches per update"),
    ),
    "--resume": ("MODEL.RESUME", dict(metavar="CKPT", help="go on from this checkpoint")),
    "--pretrained": (
        "PRETRAINED",
        dict(metavar="CKPT", help="fine-tuning starts from this checkpoint's encoder"),
    ),
    "--eval": (
        "EVAL_MODE",
        dict(action="store_true", default=None, help="evaluate the checkpoint of --resume"),
    ),
    "--throughput": (
        "THROUGHPUT_MODE",
        dict(action="store_true", default=None, help="measure images/s of the classifier"),
    ),
    "--use-checkpoint": (
        "TRAIN.USE_CHECKPOINT",
        dict(action="store_true", default=None, help="less memory: recompute activations"),
    ),
    "--amp-opt-level": (
        "TRAIN.PRECISION",
        dict(choices=("O0", "O1", "O2"), help="O0: float32; O1, O2: mixed precision"),
    ),
    "--device": ("DEVICE", dict(choices=("auto", "cpu", "cuda"), help="default: a GPU if any")),
    "--output": ("OUTPUT", dict(metavar="DIR", help="default: output")),
    "--tag": ("TAG", dict(metavar="NAME", help="the run is kept in OUTPUT/MODEL.NAME/TAG")),
}


def make_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all programs which read a configuration share."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="SIMMIM_TRACEBACK=1 in the environment shows where an error was raised.",
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML configuration")
    for flag, (_, details) in FLAGS.items():
        parser.add_argument(flag, **details)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="any config key")
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help="accepted; the launcher's environment wins"
    )
    return parser


def positive_number(text: str) -> float:
    """The `type` of an argument that is a positive, finite number, within what can be computed."""
    return _within(float, text, 1 / _LARGEST, "a number")


def positive_integer(text: str) -> int:
    """The `type` of an argument that counts something: 1 or more."""
    return _within(int, text, 1, "a whole number")


def _within(kind: Callable[[str], Any], text: str, least: float, expected: str) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not least <= number <= _LARGEST:  # not a number is neither
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not {expected} from {least:g} to {_LARGEST:g}"
        )
    return number


def read_config(arguments: argparse.Namespace) -> CfgNode:
    """Defaults < BASE < file < flags < --opts."""
    opts: list[Any] = []
    for flag, (key, _) in FLAGS.items():
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if flag == "--amp-opt-level" and value is not None:
            value = "float32" if value == "O0" else "auto"
        if value is not None:
            opts += [key, value]
    return get_config(arguments.cfg, opts + arguments.opts)
