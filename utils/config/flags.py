"""The flags of all programs: the key of the configuration that each sets, and its programs."""

from dataclasses import dataclass, field
from typing import Any

from utils.config.defaults import DEFAULTS
from utils.config.values import value_of


@dataclass(frozen=True)
class Flag:
    """The key that a flag sets, and its text in --help."""

    group: str
    help: str
    key: str = ""  # of the configuration
    default: str = ""  # words for --help where the key's default is not clear by itself
    details: dict[str, Any] = field(default_factory=dict)  # for argparse

    @property
    def text(self) -> str:
        """The help text with the key and its default."""
        if not self.key:
            return self.help
        return f"{self.help} [{self.key}: {self.default or value_of(DEFAULTS, self.key)}]"


_SWITCH = dict(action="store_true", default=None)
FLAGS: dict[str, Flag] = {
    "--cfg": Flag(
        "configuration", "recipe, a YAML file", details=dict(required=True, metavar="FILE")
    ),
    "--opts": Flag(
        "configuration",
        "any keys of the configuration (utils/config/defaults.py lists them); they win over flags",
        details=dict(nargs="*", default=(), metavar="KEY VALUE"),
    ),
    "--print-config": Flag(
        "configuration",
        "print the configuration that all this makes, and end",
        details=dict(action="store_true"),
    ),
    "--data-path": Flag(
        "data",
        "folder of pictures; to fine-tune: with train/ and val/",
        "DATA.DATA_PATH",
        "none",
        dict(metavar="DIR"),
    ),
    "--batch-size": Flag(
        "data", "images per process", "DATA.BATCH_SIZE", details=dict(type=int, metavar="N")
    ),
    "--pretrained": Flag(
        "starting point",
        "checkpoint whose encoder is fine-tuned",
        "PRETRAINED",
        "none",
        dict(metavar="CKPT"),
    ),
    "--resume": Flag(
        "starting point",
        "checkpoint, instead of the newest in the run's folder",
        "MODEL.RESUME",
        "none",
        dict(metavar="CKPT"),
    ),
    "--eval": Flag(
        "instead of training",
        "evaluate the checkpoint of --resume",
        "EVAL_MODE",
        details=_SWITCH,
    ),
    "--throughput": Flag(
        "instead of training",
        "measure images/s of the classifier",
        "THROUGHPUT_MODE",
        details=_SWITCH,
    ),
    "--accumulation-steps": Flag(
        "computing",
        "micro-batches per update",
        "TRAIN.ACCUMULATION_STEPS",
        "0, as 1",
        dict(type=int, metavar="K"),
    ),
    "--use-checkpoint": Flag(
        "computing",
        "less memory, more time: recompute activations",
        "TRAIN.USE_CHECKPOINT",
        details=_SWITCH,
    ),
    "--amp-opt-level": Flag(
        "computing",
        "O0: float32; O1, O2: mixed precision",
        "TRAIN.PRECISION",
        "auto, mixed where that is fast",
        dict(choices=("O0", "O1", "O2")),
    ),
    "--device": Flag(
        "computing", "where", "DEVICE", "auto, a GPU if any", dict(choices=("auto", "cpu", "cuda"))
    ),
    "--output": Flag(
        "output",
        "the run's folder is DIR/MODEL.NAME/TAG",
        "OUTPUT",
        "output",
        dict(metavar="DIR"),
    ),
    "--tag": Flag("output", "its name", "TAG", details=dict(metavar="NAME")),
    "--local_rank": Flag(
        "launcher",
        "accepted; the launcher's environment wins",
        details=dict(type=int, metavar="N"),
    ),
}
ALIASES = {"--local_rank": "--local-rank"}
_FOR_FINETUNING = ("--pretrained", "--eval", "--throughput")
# Entry point -> its stage and its flags
PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "main_simmim.py": (
        "pre-training",
        tuple(flag for flag in FLAGS if flag not in _FOR_FINETUNING),
    ),
    "main_finetune.py": ("fine-tuning", tuple(FLAGS)),
}
UPDATE_FLAGS = (
    *("--batch-size", "--accumulation-steps", "--use-checkpoint", "--amp-opt-level", "--device"),
)
