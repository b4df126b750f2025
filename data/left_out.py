"""Which names are pictures, and a count of what is left out, by reason."""

import os
from collections import Counter
from collections.abc import Mapping

from data.pictures import ARRAY_SUFFIX, IMAGE_SUFFIXES
from utils.messages import short

_SUFFIXES = tuple(suffix.encode() for suffix in (*IMAGE_SUFFIXES, ARRAY_SUFFIX))
# What operating systems, file managers and storage systems make for themselves, in small letters.
_OF_SYSTEMS = frozenset(
    (
        *(b"__macosx", b"lost+found", b"$recycle.bin", b"system volume information"),
        *(b"@eadir", b"@recycle", b"@recently-snapshot", b"#recycle", b"#snapshot"),
        b"paxheader",  # headers of a tar file, unpacked by a program that did not know them
    )
)
_HIDDEN_BEGINNINGS = (b".", b"PaxHeaders.")
_LONGEST_SUFFIX = 24  # bytes
_SHOWN = 8  # reasons in one line

# Reasons beside suffixes such as ".gif"; "(s)" stands where there are several.
HIDDEN = "hidden"
HIDDEN_FOLDER = "hidden folder(s)"
WITHOUT_SUFFIX = "without suffix"
OTHER_SUFFIX = "with a very long suffix"
LINK_TO_NOTHING = "link(s) to nothing"
NO_FILE = "pipe(s) or device(s)"
REPEATED = "folder(s) that links reach again"
IN_NO_CLASS = "in no class folder"


def is_hidden(name: bytes) -> bool:
    """Whether one part of a path is hidden, or belongs to an operating system or file manager."""
    if name.startswith(_HIDDEN_BEGINNINGS):
        return name not in (b".", b"..")
    return name.lower() in _OF_SYSTEMS


def reason_against(name: bytes) -> str:
    """Why a file of this name (without its folder) is no picture; empty if it is one."""
    if name.lower().endswith(_SUFFIXES) and not name.startswith(_HIDDEN_BEGINNINGS):
        return ""
    return HIDDEN if is_hidden(name) else suffix_reason(os.path.splitext(name)[1])


def suffix_reason(suffix: bytes) -> str:
    """The reason for leaving out a file because of its suffix."""
    if len(suffix) > _LONGEST_SUFFIX:
        return OTHER_SUFFIX
    return short(os.fsdecode(suffix.lower())) if len(suffix) > 1 else WITHOUT_SUFFIX


class LeftOut:
    """How many files or folders are no part of a data set for which reason, with an example each.

    The example is the first one in sorted order.
    """

    def __init__(
        self, counts: Mapping[str, int] | None = None, examples: Mapping[str, bytes] | None = None
    ) -> None:
        self.counts, self.examples = Counter(counts or {}), dict(examples or {})

    def add(self, reason: str, example: bytes, number: int = 1) -> None:
        """Count something that is left out."""
        self.counts[reason] += number
        first = self.examples.get(reason)
        if first is None or example < first:
            self.examples[reason] = example

    def update(self, other: "LeftOut", place: bytes) -> None:
        """Add the counts of a part, whose examples lie in `place`."""
        for reason, number in other.counts.items():
            self.add(reason, place + other.examples[reason], number)

    def __str__(self) -> str:
        """The numbers, the largest first, such as "16 hidden (._a.jpg), 3 .gif"; empty if none."""
        counts = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        words = [self._words(reason, number) for reason, number in counts[:_SHOWN]]
        if rest := counts[_SHOWN:]:
            kinds = "kinds" if len(rest) > 1 else "kind"
            words.append(f"{sum(number for _, number in rest)} of {len(rest)} more {kinds}")
        return ", ".join(words)

    def words(self) -> str:
        """The numbers at the end of a sentence; empty if nothing is left out."""
        return f"; left out: {self}" if self.counts else ""

    def _words(self, reason: str, number: int) -> str:
        words = f"{number} {reason.replace('(s)', 's' * (number != 1))}"
        if reason.startswith("."):
            return words
        return f"{words} ({short(os.fsdecode(self.examples[reason]))})"
