"""Write the weights of a sharded checkpoint to one file, for fine-tuning or evaluation.

python -m tools.export --consolidate RUN/ckpt_epoch_N.sharded [--to FILE.pth]

By default, the file is weights_epoch_N.pth beside the checkpoint; no run resumes from it.
"""

import argparse
from pathlib import Path

from utils.config.arguments import make_parser, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("-m tools.export", __doc__)
    parser.add_argument("--consolidate", metavar="CKPT", type=Path, required=True)
    parser.add_argument("--to", metavar="FILE", type=Path, help="default: see above")
    return parser.parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)


import torch

from utils.checkpoints.contents import save_checkpoint
from utils.checkpoints.names import SHARDED_SUFFIX, an_example, checkpoints_in
from utils.checkpoints.reading import Content, read_checkpoint
from utils.checkpoints.sharded import REST, load_tensors
from utils.checkpoints.sharded_contents import read_contents, tensors_below, verify
from utils.processes.exit_status import run_program

_PREFIX = "model."
_KEPT = ("epoch", "update", "seed", "config", "classes")


def main() -> None:
    """Read the checkpoint, write the file."""
    arguments = read_arguments()
    folder: Path = arguments.consolidate
    path: Path = arguments.to or folder.with_name(
        f"weights_{folder.stem.removeprefix('ckpt_')}.pth"
    )
    if path.exists():
        raise ValueError(f"{path} exists already: give another name with --to FILE")
    content = consolidate(folder)
    save_checkpoint(path, content)
    number = sum(value.numel() for value in content["model"].values())
    print(f"wrote {path} ({len(content['model'])} tensors, {number:,} numbers)")


def consolidate(folder: Path) -> Content:
    """Content of an ordinary checkpoint, without optimizer; ValueError for a broken checkpoint."""
    if not folder.is_dir():
        raise ValueError(f"checkpoint {folder} is not a folder, expected a sharded one")
    if folder.suffix != SHARDED_SUFFIX and checkpoints_in(folder):
        raise ValueError(f"{folder} is a run's folder: {an_example(folder)}")
    contents = read_contents(folder)
    verify(folder, contents)
    tensors = {
        f"{_PREFIX}{name}": torch.zeros(entry.size, dtype=entry.properties.dtype)
        for name, entry in tensors_below(contents, _PREFIX).items()
    }
    rest = read_checkpoint(folder / REST)
    load_tensors(folder, contents, tensors)
    weights = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    return {"model": weights} | {key: rest[key] for key in _KEPT if key in rest}


if __name__ == "__main__":
    run_program(main)
