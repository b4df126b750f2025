"""Run the tests of this folder, or say in one line that they are skipped and why."""

import sys
from pathlib import Path

import pytest

from tests.support.accelerator import VARIABLE, why_missing
from utils.messages import fail

if __name__ == "__main__":
    try:
        missing = why_missing()
    except ValueError as error:
        fail(f"error: {error}", error)
    if missing:
        print(f"tests/gpu: skipped, {missing}; {VARIABLE}=cpu runs what can run on a CPU")
        sys.exit(0)
    arguments = sys.argv[1:]
    if not any(Path(word.partition("::")[0]).exists() for word in arguments):
        arguments.append(str(Path(__file__).parent))
    sys.exit(pytest.main(["-m", "gpu", "--durations=5", *arguments]))
