"""Messages for wrong names and sizes: what was given, what is possible, which key said it."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

Part = TypeVar("Part")


def choose(table: Mapping[str, Part], name: str, key: str) -> Part:
    """Return `table[name]`; ValueError names the config key and lists the choices."""
    if name not in table:
        raise ValueError(f"{key} is {name!r}; choices: {', '.join(table)}")
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
