"""Read recipes: YAML files, from untrusted sources, and the files that they include with BASE."""

from pathlib import Path
from typing import Any

import yaml

from utils.files import open_regular
from utils.messages import reason_of, shown

# Limits for a recipe with its BASE files together; an ordinary one has a few KB.
_MOST_BYTES = 2**15
_MOST_FILES = 64
_MOST_MERGED = 10**4  # pairs that `<<` copies
_DEEPEST = 32  # brackets

Values = dict[Any, Any]


def read_files(path: Path) -> list[tuple[Path, Values]]:
    """A recipe's files with their values in the order of merging: the recipe itself is last.

    BASE names files relative to the file that contains it. ValueError where one cannot be read.
    """
    reader = _Reader()
    reader.read(path, ())
    if not any(values for _, values in reader.files):
        raise ValueError(f"config file {path} is empty: a recipe sets at least one key")
    return reader.files


class _Reader:
    """Reads files; the limits hold for all of them together."""

    def __init__(self) -> None:
        self.files: list[tuple[Path, Values]] = []
        self.num_files = self.num_bytes = 0

    def read(self, path: Path, including: tuple[Path, ...]) -> None:
        """Read the files that BASE names, then the file itself."""
        values = self._values(path)
        resolved = path.resolve()
        if resolved in including:
            chain = " -> ".join(file.name for file in (*including, resolved))
            raise ValueError(f"{path}: BASE includes itself: {chain}")
        bases = values.pop("BASE", None) or []
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(map(_may_be_path, bases)):
            raise ValueError(f"{path}: BASE is {shown(bases)}, expected a file or a list of files")
        for base in filter(None, bases):
            self.read(path.parent / base, (*including, resolved))
        self.files.append((path, values))

    def _values(self, path: Path) -> Values:
        try:
            values = yaml.load(self._text(path), _Loader)
        except FileNotFoundError:
            raise ValueError(f"config file {path} does not exist") from None
        except OSError as error:
            raise ValueError(f"config file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"config file {path} is not a text file") from None
        except _LimitError as error:
            raise ValueError(f"config file {path} is no recipe: {error}") from None
        except Exception as error:  # broken text can raise anything
            raise ValueError(f"config file {path} is not valid YAML: {_reason(error)}") from None
        if not isinstance(values, dict | None):
            kind = type(values).__name__
            raise ValueError(f"config file {path} holds {kind}, expected KEY: value")
        return values or {}

    def _text(self, path: Path) -> str:
        """A file's text; _LimitError where it is no regular file or the recipe gets too large."""
        self.num_files += 1
        if self.num_files > _MOST_FILES:
            raise _LimitError(f"with its BASE files it has more than {_MOST_FILES}")
        try:
            descriptor = open_regular(path)
        except ValueError:
            raise _LimitError("it is no file") from None
        with open(descriptor, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        self.num_bytes += len(content)
        if self.num_bytes > _MOST_BYTES:
            raise _LimitError(f"with its BASE files it is larger than {_MOST_BYTES} bytes")
        return content.decode("utf-8")


class _LimitError(Exception):
    """A file exceeds the limits of recipes, or is no regular file."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses constructs on which PyYAML takes very long."""

    merged = 0

    def fetch_flow_collection_start(self, token: object) -> None:
        """Enter brackets; _LimitError where they are nested too deep."""
        if self.flow_level >= _DEEPEST:
            raise _LimitError(f"it has more than {_DEEPEST} brackets inside each other")
        super().fetch_flow_collection_start(token)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Copy the mappings that `<<` names into a mapping; _LimitError where they are too many."""
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > _MOST_MERGED:
            raise _LimitError(f"it merges more than {_MOST_MERGED} keys")


def _may_be_path(base: object) -> bool:
    return base is None or (isinstance(base, str) and len(base) <= 255 and "\0" not in base)


def _reason(error: Exception) -> str:
    """The error and its place in the file, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        error = ValueError(f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})")
    return reason_of(error)
