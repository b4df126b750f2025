"""Words for what differs between processes that must be equal."""

from collections.abc import Iterable, Mapping, Sequence

_MOST_NAMED = 4  # differences that a message lists
_LONGEST = 100  # characters of a value


def differences_in(facts: Sequence[Mapping[str, str]]) -> str:
    """Words for each fact that another process holds differently than process 0; else empty."""
    names = dict.fromkeys(name for own in facts for name in own)
    lines = []
    for name in names:
        values = [own.get(name, "not there")[:_LONGEST] for own in facts]
        others = [rank for rank, own in enumerate(facts) if own.get(name) != facts[0].get(name)]
        if others:
            first = others[0]
            more = f" (and in {len(others) - 1} more)" if len(others) > 1 else ""
            lines.append(f"{name} is {values[0]} in rank 0, {values[first]} in rank {first}{more}")
    if len(lines) > _MOST_NAMED:
        lines[_MOST_NAMED:] = [f"{len(lines) - _MOST_NAMED} more"]
    return "; ".join(lines)


def disagreement(differences: str) -> ValueError:
    """The error of processes that must not go on together."""
    return ValueError(
        f"the processes do not agree: {differences}; start all of them with the same command, "
        "code, packages and data"
    )


def ranks_in_words(numbers: Iterable[int]) -> str:
    """Ranks in words: "rank 3", "ranks 1, 5"."""
    names = [str(number) for number in numbers]
    return f"rank{'s' * (len(names) > 1)} {', '.join(names)}"
