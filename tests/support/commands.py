"""The shell commands on the pages: what each asks for, and whether its program understands it.

A command that a test cannot run says so on its page, in a comment at its end: "# needs GPUs".
"""

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from tests.support.docs_code import examples
from tests.support.small_runs import ROOT
from utils.config import read_recipe, with_options
from utils.config.arguments import read_config, read_program
from utils.config.flags import PROGRAMS

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
NEEDS = ("ImageNet", "CIFAR-10", "GPUs", "minutes")
# What FILE stands for.
PRETRAIN = "configs/demo/simmim_pretrain__swin_small__cifar32.yaml"
FINETUNE = "configs/cifar10/simmim_finetune__vit_tiny__cifar32.yaml"
SYSTEM = ("make", "bash", "cp", "pip", "git", "tensorboard")
_OF_FINE_TUNING = ("main_finetune.py", "tools.augmentation")
_NUMBERS = {"N": "2", "GIB": "80"}
_VARIABLES = {"SLURM_NNODES": "2"}
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(python\s[^`]*\s--[^`]*)`")
_FUNCTION = re.compile(r"(\w+)\(\) \{ (.*); \}")
_ASSIGNMENT = re.compile(r"(\w+)=(\S+)")
# Flags of torchrun that older ones lack.
_NEW_FLAGS = ("--signals-to-handle", "--shutdown-timeout")


@dataclass(frozen=True)
class Command:
    """A command, where it stands, and what it needs that a test does not have."""

    page: str
    line: int
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its place."""
        return f"{self.page}:{self.line}"

    @property
    def is_system(self) -> bool:
        """Whether it starts no program of this project."""
        return self.words[0] in SYSTEM

    @property
    def is_example(self) -> bool:
        """Whether it starts a program of docs/extending.md, which has tests of its own."""
        names = {f"{example.name}.py" for example in examples("extending.md")}
        return self.words[0] == "python" and (self.words[1] in names or "pytest" in self.words)

    @property
    def is_of_fine_tuning(self) -> bool:
        """Whether its data are train/ and val/, with classes."""
        return any(word in _OF_FINE_TUNING for word in self.words)


def commands(page: str) -> list[Command]:
    """The commands in the blocks of a page, in order, those of its shell functions one by one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Command] = []
    for block in _BLOCK.finditer(text):
        first = text[: block.start(1)].count("\n") + 1
        found += _commands_of_block(page, first, block[1])
    return found


def inline_commands(page: str) -> list[Command]:
    """The commands with flags that a page names in its sentences."""
    text = _ANY_BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    lines = [" ".join(words.split()) for words in _INLINE.findall(text)]
    return [Command(page, 0, tuple(line.split())) for line in lines if "tools.NAME" not in line]


def _commands_of_block(page: str, first: int, block: str) -> Iterator[Command]:
    variables = dict(_VARIABLES)
    functions: dict[str, tuple[str, tuple[str, ...]]] = {}
    for line, text in _joined(first, block):
        code, needs = _without_comment(text)
        if function := _FUNCTION.fullmatch(code):
            functions[function[1]] = function[2], needs
            continue
        if assignment := _ASSIGNMENT.fullmatch(code):
            variables[assignment[1]] = assignment[2]
            continue
        words = shlex.split(code)
        if words and words[0] in functions:
            code, needs = functions[words[0]]
            arguments = {str(index): word for index, word in enumerate(words)}
            words = shlex.split(_filled(code, arguments))
        if words:
            yield Command(page, line, tuple(_filled(word, variables) for word in words), needs)


def _joined(first: int, block: str) -> Iterator[tuple[int, str]]:
    """Each command on one line, with the number of its first line."""
    start = first
    parts: list[str] = []
    for line, text in enumerate(block.splitlines(), first):
        start = start if parts else line
        parts.append(text.removesuffix("\\").strip())
        if not text.endswith("\\"):
            yield start, " ".join(parts)
            parts = []


def _without_comment(text: str) -> tuple[str, tuple[str, ...]]:
    """A command without its comment, and what that says it needs."""
    code, _, comment = f" {text}".partition(" #")
    needs = re.match(r" needs ([^;:]*)", comment)
    return code.strip(), tuple(needs[1].strip().split(" and ")) if needs else ()


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), text)


def demo(command: Command) -> list[Command]:
    """What `make demo` runs."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    values = dict(line.split(" := ") for line in lines if " := " in line)
    start = next(index for index, line in enumerate(lines) if line.startswith("demo:"))
    recipe = lines[start + 1 : lines.index("", start)]
    filled = [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], line) for line in recipe]
    programs = [line.split("/python ")[1].split() for line in filled]
    return [replace(command, words=("python", *words)) for words in programs]


def with_recipes(command: Command) -> Command:
    """The command with a recipe for FILE and numbers for what stands for them, nothing optional."""
    recipe = FINETUNE if command.is_of_fine_tuning else PRETRAIN
    words = [re.sub(r"^\[(?=--)|(?<=DIR)\]$", "", word) for word in command.words]
    values = {"FILE": recipe, **_NUMBERS}
    return replace(command, words=tuple(values.get(word, word) for word in words))


def program_of(command: Command) -> tuple[str, list[str]]:
    """The module that a command starts, by way of torchrun or not, and its arguments."""
    words = list(command.words)
    if words[0] in ("srun", "mpirun"):  # then its own flags
        words = words[min(words.index(name) for name in ("torchrun", "python") if name in words) :]
    if words[0] == "torchrun":
        parser: Any = get_args_parser()
        for flag in _NEW_FLAGS:
            if flag in words and flag not in parser._option_string_actions:
                del words[words.index(flag) : words.index(flag) + 2]
        launched = parser.parse_args(words[1:])
        script, arguments = launched.training_script, launched.training_script_args
        words = ["python", *["-m"] * launched.module, script, *arguments]
    if words[0] != "python":
        raise ValueError(f"{command.name}: {words[0]} is no program of this project, and not known")
    module, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    if module in ("tools.benchmark", "tools.study"):
        module += ".__main__"
    return module.removesuffix(".py"), arguments


def require_understood(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a command read by its own program; an error where it has no such flag, file or key."""
    if unknown := set(command.needs) - set(NEEDS):
        raise ValueError(f"{command.name} needs {unknown}, expected some of {NEEDS}")
    if command.is_system:
        require_known(command)
    elif command.is_example:
        files = [word for word in command.words if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files), command
    else:
        module, arguments = program_of(with_recipes(command))
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        if f"{module}.py" in PROGRAMS:
            read_program(f"{module}.py", None)
            return
        read = importlib.import_module(module).read_arguments()
        if hasattr(read, "cfg"):
            cfg = read_config(read)
            for key, *values in getattr(read, "vary", ()):
                for value in values:
                    with_options(cfg, [key, value])


def require_known(command: Command) -> None:
    """AssertionError where a system command names what is not there."""
    program, *arguments = command.words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), command
    elif program == "bash":
        assert (ROOT / arguments[0]).exists(), command
    elif program == "pip":
        files = [arguments[index + 1] for index, word in enumerate(arguments) if word == "-r"]
        assert all((ROOT / file).exists() for file in files), command
    elif program == "tensorboard":
        assert importlib.util.find_spec("tensorboard"), command


def small_options(recipe: str) -> list[Any]:
    """What makes a run of a recipe small: the same encoder with few channels, and few pictures."""
    cfg = read_recipe(recipe)
    section = cfg.MODEL.TYPE.upper()
    keys: dict[str, Any] = {"EMBED_DIM": 32, "DEPTH": 2, "NUM_HEADS": 2}
    if section == "RESNET":
        keys = {"LAYERS": [1] * len(cfg.MODEL.RESNET.LAYERS), "WIDTH": 1}
    elif section == "CONVNEXT":
        stages = len(cfg.MODEL.CONVNEXT.DEPTHS)
        keys = {"DEPTHS": [1] * stages, "DIMS": [16] * stages}
    elif section != "VIT":
        stages = len(cfg.MODEL[section].DEPTHS)
        keys = {"EMBED_DIM": 16, "DEPTHS": [1] * stages, "NUM_HEADS": [1] * stages}
    values = {f"MODEL.{section}.{key}": value for key, value in keys.items()}
    values |= {"DATA.NUM_SHAPES": 16, "DATA.NUM_VAL_SHAPES": 8, "DATA.BATCH_SIZE": 4}
    values |= {"DATA.NUM_WORKERS": 0, "DATA.IMAGES_PER_CLASS": 0, "PRINT_FREQ": 1, "DEVICE": "cpu"}
    if cfg.TRAIN.EPOCHS > 5:
        values |= {"TRAIN.EPOCHS": 1, "TRAIN.WARMUP_EPOCHS": 0}
    return [word for pair in values.items() for word in pair]
