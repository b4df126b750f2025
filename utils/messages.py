"""Error messages for wrong names and sizes: the value, the possible values, the config key."""

import os
import reprlib
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NoReturn, TypeVar

Part = TypeVar("Part")
Shape = tuple[int, ...]


_LONGEST_REASON = 300  # characters
_MOST_PARTS = 8  # of a parameter's name, which may belong to a prefix


class _Short(reprlib.Repr):
    """A repr that replaces very large integers, which Python refuses to print."""

    def repr_int(self, value: int, level: int) -> str:
        """The number, or words where it is too large."""
        return super().repr_int(value, level) if abs(value) < 2**1000 else "an enormous integer"


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlist = _short.maxtuple = _short.maxdict = 8
_short.maxlevel = 1


def shown(value: object) -> str:
    """The repr of a value for a message: on one line, cut where it is long."""
    return " ".join(_short.repr(value).split())


def short(name: str) -> str:
    """A name from a file or command line for a message: on one line, cut to 80 characters."""
    text = name[:1000].encode(errors="backslashreplace").decode()  # of bytes that are no UTF-8
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(path: str) -> str:
    """A path for messages and lists of one name in each line, with line breaks escaped."""
    return path.replace("\n", "\\n").replace("\r", "\\r")


def reason_of(error: BaseException) -> str:
    """An error's message on one line: the system's text, else its own, else its class name."""
    if isinstance(error, MemoryError):
        return "no memory is left"
    text = str(getattr(error, "strerror", None) or error)
    return " ".join(text.split())[:_LONGEST_REASON] or type(error).__name__


def fail(message: str, error: Exception | None = None, status: int = 2) -> NoReturn:
    """Print one line and end the program with a status: 2 is that of usage errors.

    With SIMMIM_TRACEBACK in the environment the traceback of `error` comes first.
    """
    if error is not None and os.environ.get("SIMMIM_TRACEBACK"):
        traceback.print_exception(error)
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)


def choose(table: Mapping[str, Part], name: str, key: str) -> Part:
    """Return `table[name]`; ValueError names the config key and lists the choices."""
    if name not in table:
        raise ValueError(f"{key} is {shown(name)}; choices: {', '.join(table)}")
    return table[name]


def require_divisible(value: int, divisor: int, value_key: str, divisor_key: str) -> None:
    """ValueError unless `divisor` divides `value`; it names the two nearest legal values."""
    if divisor < 1:
        raise ValueError(f"{divisor_key} is {divisor}, expected at least 1")
    if value % divisor:
        below = value // divisor * divisor
        legal = [size for size in (below, below + divisor) if size > 0]
        raise ValueError(
            f"{value_key} is {value}, which {divisor_key} = {divisor} does not divide; "
            f"nearest legal: {one_of(legal)}"
        )


def one_of(values: Iterable[object]) -> str:
    """Join values as "a, b or c"."""
    *first, last = [str(value) for value in values]
    return f"{', '.join(first)} or {last}" if first else last


def require_same_shapes(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str
) -> None:
    """ValueError names the first parameters that are missing, unexpected or of another shape."""
    differences = [f"{short(name)} is missing" for name in expected if name not in found]
    differences += [f"{short(name)} is not in the model" for name in found if name not in expected]
    differences += [
        f"{short(name)} has shape {shown(found[name])}, the model {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        prefix, number = prefix_before(found, expected)
        others = [name for name in found if not name.startswith(prefix)]
        if prefix and others and 2 * number > len(expected):
            more += (
                f"; {len(found) - len(others)} of its {len(found)} names have the prefix "
                f'"{short(prefix)}" before the model\'s, the others do not (first: '
                f"{short(others[0])}): save the weights without the prefix"
            )
        raise ValueError(f"{what} does not fit the model: {'; '.join(differences[:3])}{more}")


def prefix_before(names: Collection[str], known: Collection[str]) -> tuple[str, int]:
    """The parts before most of the names that are then known ones, and how many are."""
    counts: Counter[str] = Counter()
    for name in names:
        prefix, rest = "", name
        for _ in range(_MOST_PARTS):
            counts[prefix] += rest in known
            part, dot, rest = rest.partition(".")
            prefix += part + dot
            if not dot:
                break
    best = min(counts, key=lambda prefix: (-counts[prefix], len(prefix)), default="")
    return best, counts[best]


def require_same_classes(found: Sequence[str], expected: Sequence[str], what: str) -> None:
    """ValueError where names or order differ; it names the first classes that only one list has."""
    if list(found) == list(expected):
        return
    known, given = set(expected), set(found)
    unknown = [name for name in found if name not in known]
    missing = [name for name in expected if name not in given]
    kinds = {"unknown": unknown, "missing": missing}
    details = [
        f"{kind}: {', '.join(map(short, names[:3]))}" for kind, names in kinds.items() if names
    ]
    raise ValueError(
        f"{what}: {len(found)} classes instead of {len(expected)} "
        f"({'; '.join(details) or 'in another order'})"
    )
