"""A folder in which the commands of a page run: small data in place of what the page names."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main_finetune
import main_simmim
from tests.support.commands import (
    FINETUNE,
    PRETRAIN,
    Command,
    demo,
    program_of,
    small_options,
    with_recipes,
)
from tests.support.kills import forked
from tests.support.picture_files import write_classes
from tests.support.small_runs import ROOT, call
from tools.measuring import measure

_LAST = "ckpt_epoch_4.pth"  # of the recipe that FILE stands for
# What makes a measurement short.
_SHORT = {
    "step": ["--rounds", 1, "--updates", 1],
    "data": ["--rounds", 1, "--pictures", 8],
    "train": ["--rounds", 1, "--updates", 1],
}


class Playground:
    """The working folder of commands, with configs/, data, and what they write."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.chdir(folder)
        forked()  # sides of the benchmark start in no time
        monkeypatch.setattr(measure, "START_METHOD", "forkserver")
        (folder / "configs").symlink_to(ROOT / "configs")
        for part in ("train", "val"):
            write_classes(folder / "imagenet" / part, number=8)
        (folder / "arrays").mkdir()
        for index in range(8):
            np.save(folder / f"arrays/{index}.npy", np.full((40, 50, 13), index, np.float32) / 8)

    def run(self, command: Command) -> None:
        """Run a command on small data; AssertionError where it does not end well."""
        if command.words == ("make", "demo"):
            for program in demo(command):
                self.run(program)
        elif command.words[0] == "cp":
            subprocess.run(command.words, cwd=self.folder, check=True)
        elif not command.is_system:
            self._run_program(self._filled(with_recipes(command)))

    def _run_program(self, command: Command) -> None:
        module, arguments = program_of(command)
        words: list[Any] = [*arguments]
        if module == "tools.benchmark.__main__":
            words += _SHORT[words[0]]
        if "--cfg" in words:
            words += ["--opts", *small_options(words[words.index("--cfg") + 1])]
        if command.words[0] == "torchrun":
            self._launch(command, module, words)
        else:
            program = importlib.import_module(module)
            assert call(self.monkeypatch, program, *words) == 0, command
        if "--picture" in words:
            assert (self.folder / words[words.index("--picture") + 1]).exists(), command

    def _launch(self, command: Command, module: str, words: list[Any]) -> None:
        launcher = command.words[1 : command.words.index(f"{module}.py")]
        started = [sys.executable, "-m", "torch.distributed.run", "--standalone", *launcher]
        done = subprocess.run(
            [*started, str(ROOT / f"{module}.py"), *map(str, words)],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def _filled(self, command: Command) -> Command:
        """The command with names of this folder for what a page lets the reader choose."""
        pictures = "imagenet" if command.is_of_fine_tuning else "imagenet/train"
        channels = any("IN_CHANS" in word for word in command.words)
        names = {"<imagenet>": "imagenet", "<shards>": "shards"}
        whole = {"DIR": "arrays" if channels else pictures}
        words = []
        for word in command.words:
            for name, value in names.items():
                word = word.replace(name, value)
            word = whole.get(word, word)
            if word == "CKPT":
                word = str(self._finished(main_simmim, PRETRAIN, "imagenet/train") / _LAST)
            if word.endswith("RUN"):
                run = self._finished(main_finetune, FINETUNE, "imagenet")
                word = word.removesuffix("RUN") + str(run)
            if "/RECIPE/" in word:
                word = self._written(word)
            words.append(word)
        return replace(command, words=tuple(words))

    def _finished(self, program: Any, recipe: str, data: str) -> Path:
        """The folder of a run of the recipe that FILE stands for."""
        run = self.folder / "output" / Path(recipe).stem.partition("__")[0] / "finished"
        if not run.exists():
            words = ["--cfg", recipe, "--data-path", data, "--tag", "finished"]
            words += ["--opts", *small_options(recipe)]
            assert call(self.monkeypatch, program, *words) == 0
        return run

    def _written(self, word: str) -> str:
        """The file of that kind that a command before it has written, or a diverged run."""
        if "diverged" in word:
            for index in range(8):
                (self.folder / "nan").mkdir(exist_ok=True)
                pixels = np.full((40, 50, 3), 3e38, np.float32)  # overflows
                np.save(self.folder / f"nan/{index}.npy", pixels)
            words = ["--cfg", PRETRAIN, "--data-path", "nan", "--opts", *small_options(PRETRAIN)]
            assert call(self.monkeypatch, main_simmim, *words, "TRAIN.MAX_SKIPPED", 1) == 2
            pattern = "diverged_update_*.pth"
        else:
            pattern = f"ckpt_epoch_*{Path(word).suffix}"
        (found,) = self.folder.glob(f"output/*/*/{pattern}")
        return str(found)
