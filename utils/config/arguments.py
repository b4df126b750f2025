"""Read the command lines of all programs without importing torch, so that errors show at once."""

import argparse
import difflib
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from yacs.config import CfgNode

from utils.config import keys_like, read_recipe, stage_of, to_plain, with_options
from utils.config.flags import ALIASES, FLAGS, PROGRAMS
from utils.config.values import value_of
from utils.messages import fail, one_of, short

_WORKERS = "DATA.NUM_WORKERS"
_MOST_SHOWN = 8  # changed keys that the summary lists
_LARGEST = 10.0**15  # largest number, and the inverse of the smallest


class Parser(argparse.ArgumentParser):
    """A parser that raises a one-line ValueError for a wrong command line, with a suggestion."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse `args`, by default the command line; values after --opts may be negative."""
        words, opts = _without_options(sys.argv[1:] if args is None else args)
        for index, word in enumerate(words):
            flag, _, value = word.partition("=")
            if flag.startswith("--") and flag not in self._option_string_actions:
                value = value or next(iter(words[index + 1 : index + 2]), "VALUE")
                raise ValueError(f"unknown flag {short(flag)}; {self._hint(flag, value)}")
        arguments = super().parse_args(words, namespace)
        if "--opts" in self._option_string_actions:
            arguments.opts = [*arguments.opts, *opts]
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise ValueError instead of ending the program."""
        raise ValueError(f"{message} ({self.prog} --help tells more)")

    def _hint(self, flag: str, value: str) -> str:
        """A suggestion for an unknown flag."""
        owners = [name for name, (_, flags) in PROGRAMS.items() if flag in flags]
        if owners:
            return f"it is a flag of {' and '.join(owners)}"
        own = [name for name in self._option_string_actions if name.startswith("--")]
        keys = keys_like(flag[2:]) if len(flag) < 80 and "--opts" in own else []
        near = difflib.get_close_matches(flag, own, n=1, cutoff=0.75)
        if near and not any(_last_part(key) == _last_part(flag[2:]) for key in keys):
            return f"did you mean {near[0]}?"
        flags_of_keys = {entry.key: name for name, entry in FLAGS.items() if name in own}
        meant = [flags_of_keys.get(key, f"--opts {key}") + f" {short(value)}" for key in keys]
        return f"did you mean {one_of(meant)}?" if meant else f"{self.prog} --help lists the flags"


class _Help(argparse.HelpFormatter):
    """Fits a description to the terminal: prose is re-wrapped, a command keeps its own line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks: list[str] = []
        for line in text.splitlines():
            if blocks and _may_join(blocks[-1], line):
                blocks[-1] += f" {line.strip()}"
            else:
                blocks.append(line)
        return "\n".join(
            textwrap.fill(block, width, subsequent_indent=_indentation(block)) for block in blocks
        )


def _is_command(line: str) -> bool:
    return line.lstrip().startswith(("python ", "torchrun "))


def _may_join(one: str, other: str) -> bool:
    """Whether two lines belong to one paragraph."""
    prose = all(line.strip() and not _is_command(line) for line in (one, other))
    return prose and one[:1].isspace() == other[:1].isspace()


def _indentation(block: str) -> str:
    own = block[: len(block) - len(block.lstrip())]
    return own + "    " * _is_command(block)


def _last_part(key: str) -> str:
    return key.rpartition(".")[2].upper().replace("-", "_")


def _without_options(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split off the values after --opts: argparse takes a value such as -1e-3 for a flag."""
    rest: list[str] = []
    opts: list[str] = []
    chosen = rest
    for word in words:
        if word.startswith("--") or word == "-h":
            chosen = opts if word == "--opts" else rest
        if word != "--opts":
            chosen.append(word)
    return rest, opts


def make_parser(
    program: str,
    description: str | None,
    flags: Sequence[str] = (),
    first: str = "",
    recipe: str = "--cfg FILE",
) -> Parser:
    """The parser of a program with the FLAGS that `flags` names; the caller may add arguments.

    `first` is the usage text before all flags, `recipe` that of the recipe.
    """
    name = f"python {program}"
    of_configuration = [flag for flag in FLAGS if flag in flags]
    usage = textwrap.fill(
        f"{name} {first}{recipe} [flags] [--opts KEY VALUE ...]",
        shutil.get_terminal_size().columns - len("usage: "),
        subsequent_indent=" " * len("usage: "),
    )
    explained = (
        "In brackets: the key of the configuration that a flag sets, and its default. The recipe "
        "holds where no flag is given.\n\n"
    )
    parser = Parser(
        prog=name,
        usage=usage if of_configuration else None,
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
        epilog=(explained if of_configuration else "")
        + "SIMMIM_TRACEBACK=1 in the environment shows where an error was raised.",
    )
    groups: dict[str, Any] = {}
    for flag in of_configuration:
        entry = FLAGS[flag]
        if entry.group not in groups:
            groups[entry.group] = parser.add_argument_group(entry.group)
        names = [flag, *filter(None, [ALIASES.get(flag)])]
        groups[entry.group].add_argument(*names, help=entry.text, **entry.details)
    return parser


def positive_number(text: str) -> float:
    """The `type` of an argument that is a number from 1e-15 to 1e15."""
    return _within(float, text, 1 / _LARGEST, "a number")


def positive_integer(text: str) -> int:
    """The `type` of an argument that is a count: a whole number from 1 to 1e15."""
    return _within(int, text, 1, "a whole number")


def _within(kind: Callable[[str], Any], text: str, least: float, expected: str) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not least <= number <= _LARGEST:  # also true for NaN
        raise argparse.ArgumentTypeError(
            f"{short(text)} is not {expected} from {least:g} to {_LARGEST:g}"
        )
    return number


@dataclass(frozen=True)
class Command:
    """The configuration of a command line, and its summary for the log."""

    cfg: CfgNode
    summary: tuple[str, ...]


def read_command(arguments: argparse.Namespace) -> Command:
    """Merge defaults < BASE < file < flags < --opts; loader workers are limited to the cores.

    The limit holds for DATA.NUM_WORKERS of a recipe, not for one that --opts sets.
    """
    opts: list[Any] = []
    for flag, entry in FLAGS.items():
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"), None)
        if flag == "--amp-opt-level" and value is not None:
            value = "float32" if value == "O0" else "auto"
        if entry.key and value is not None:
            opts += [entry.key, value]
    opts += arguments.opts
    recipe = read_recipe(arguments.cfg)
    cfg = with_options(recipe, opts)
    given = dict.fromkeys(opts[::2])
    changes = [key for key in given if value_of(cfg, key) != value_of(recipe, key)]
    words = [f"{key} {short(str(value_of(cfg, key)))}" for key in changes[:_MOST_SHOWN]]
    words += [f"{len(changes) - _MOST_SHOWN} more"] * (len(changes) > _MOST_SHOWN)
    summary = [f"recipe {arguments.cfg}" + (f" with {', '.join(words)}" if words else "")]
    cores = cores_of_a_process()
    if cores < cfg.DATA.NUM_WORKERS and _WORKERS not in given:
        summary.append(
            f"{cores} loader worker(s) instead of {cfg.DATA.NUM_WORKERS}: this process has "
            f"{cores} core(s) (--opts {_WORKERS} {cfg.DATA.NUM_WORKERS} has more nevertheless)"
        )
        cfg = with_options(cfg, [_WORKERS, cores])
    return Command(cfg, tuple(summary))


def cores_of_a_process() -> int:
    """CPU cores for each of the run's processes on this machine, at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


def read_config(arguments: argparse.Namespace) -> CfgNode:
    """The configuration of a command line."""
    return read_command(arguments).cfg


def read_program(program: str, description: str | None) -> Command:
    """Read the command line of an entry point; with --print-config, print and end the program."""
    stage, flags = PROGRAMS[program]
    arguments = make_parser(program, description, flags).parse_args()
    command = read_command(arguments)
    cfg, said = command.cfg, stage_of(command.cfg)
    if said not in (None, stage):
        other = next(name for name, (its, _) in PROGRAMS.items() if its == said)
        raise ValueError(
            f"{arguments.cfg} is for {said}, says its MODEL.NAME {short(cfg.MODEL.NAME)}: "
            f"python {other} --cfg {arguments.cfg} ..."
        )
    modes = cfg.PRETRAINED or cfg.EVAL_MODE or cfg.THROUGHPUT_MODE
    if stage == "pre-training" and (modes or cfg.TRAIN.EMA_DECAY):
        raise ValueError(
            "PRETRAINED, EVAL_MODE, THROUGHPUT_MODE and TRAIN.EMA_DECAY are for fine-tuning; "
            "pre-training goes on from a checkpoint with --resume"
        )
    if arguments.print_config:
        print(yaml.safe_dump(to_plain(cfg), sort_keys=False), end="")
        sys.exit(0)
    return command


def read_early(read: Callable[[], object]) -> None:
    """Read a command line before torch is imported; --help and errors end the program here."""
    try:
        read()
    except ValueError as error:
        fail(f"error: {' '.join(str(error).split())}", error)
