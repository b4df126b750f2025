"""Print docs/configuration.md: every key with its default, meaning and possible values.

python -m tools.keys > docs/configuration.md
"""

import argparse

from utils.config.arguments import make_parser, read_early


def read_arguments() -> argparse.Namespace:
    """Parse the command line, which has no flags."""
    return make_parser("-m tools.keys", __doc__).parse_args()


if __name__ == "__main__":  # before torch is imported, which takes seconds
    read_early(read_arguments)

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.build import DATASETS, LABELLED
from data.masking import MASKS
from models.build import DECODERS, ENCODERS, LOSSES, TARGETS
from utils.config import defaults, keys_below
from utils.config.limits import CHOICES, RANGES
from utils.config.values import value_of

# Keys that name a part, and the tables that hold it.
TABLES: dict[str, Iterable[str]] = {
    "DATA.DATASET": {**DATASETS, **LABELLED},
    "DATA.MASK": MASKS,
    "MODEL.TYPE": ENCODERS,
    "MODEL.SIMMIM.DECODER": DECODERS,
    "MODEL.SIMMIM.TARGET": TARGETS,
    "MODEL.SIMMIM.LOSS": LOSSES,
}
_KEY = re.compile(r"^(\s+[A-Z_\d]+=).*,  # (.*)$", re.MULTILINE)
HEAD = """\
# Configuration

Every key, its default, what it means and what it may be. `python -m tools.keys` writes this page
from `utils/config/defaults.py` and `utils/config/limits.py`.

Defaults < `BASE` files < the file of `--cfg` < flags < `--opts KEY VALUE ...`: what comes later
wins, and a flag that is not given overrides nothing. `--print-config` prints the result.
`DATA.NUM_WORKERS` of a recipe is an upper limit: where a process has fewer cores it takes as many
as those. Given with `--opts` it counts as it is.

| key | default | meaning | possible values |
|---|---|---|---|
"""


def meanings(path: Path) -> dict[str, str]:
    """Return the comment on each key's line; ValueError names a key without a comment."""
    # The file with the comments in place of the values makes the same sections.
    found: dict[str, Any] = {"_Meaning": _Meaning}
    exec(_KEY.sub(_with_meaning, path.read_text(encoding="utf-8")), found)
    texts = {key: value_of(found["DEFAULTS"], key) for key in keys_below(found["DEFAULTS"])}
    for key, text in texts.items():
        if not isinstance(text, _Meaning):
            raise ValueError(f"{path}: {key} has no comment that says what it means")
    return texts


class _Meaning(str):
    """The comment on a key's line."""


def _with_meaning(line: re.Match[str]) -> str:
    return f"{line[1]}_Meaning({line[2]!r}),"


def possible(key: str) -> str:
    """Possible values of a key, "" if nothing limits them."""
    if choices := CHOICES.get(key) or TABLES.get(key):
        return ", ".join(f"`{choice}`" for choice in choices)
    if key not in RANGES:
        return "`True`, `False`" if isinstance(value_of(defaults.DEFAULTS, key), bool) else ""
    low, high = (_number(limit) for limit in RANGES[key])
    return f"from {low}" if high == "inf" else f"{low} to {high}"


def _number(value: float) -> str:
    whole = not math.isinf(value) and value == int(value) and abs(value) < 10**16
    return f"{int(value):,}" if whole else f"{value:.12g}"


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{key}` | `{value_of(defaults.DEFAULTS, key)!r}` | {meaning} | {possible(key)} |"
        for key, meaning in meanings(Path(defaults.__file__)).items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    """Print the page."""
    print(page(), end="")


if __name__ == "__main__":
    main()
