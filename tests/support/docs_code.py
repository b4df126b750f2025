"""The programs in docs/; python -m tests.support.docs_code FOLDER writes them as files."""

import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("extending.md", "python.md")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"python (?:-m pytest -p )?(\w+)")  # by the command that runs it


@dataclass(frozen=True)
class Example:
    """A program, and the block that follows it: the command that runs it, or what it prints."""

    name: str
    code: str
    after: str


def examples(page: str) -> list[Example]:
    """The Python blocks of a page, in order."""
    blocks = _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    found: list[Example] = []
    for (language, code), (following, after) in itertools.pairwise(blocks):
        if language == "python":
            named = _NAMED.search(after) if following == "bash" else None
            number = f"{page.removesuffix('.md')}_{len(found) + 1}"
            found.append(Example(named[1] if named else number, code, after))
    return found


def scripts(page: str) -> list[str]:
    """The batch scripts of a page, in order."""
    blocks = _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [code for language, code in blocks if language == "sh"]


def write_examples(folder: Path, page: str) -> list[Path]:
    """Write a page's programs into a folder; their files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{example.name}.py" for example in examples(page)]
    for path, example in zip(paths, examples(page), strict=True):
        path.write_text(example.code, encoding="utf-8")
    return paths


if __name__ == "__main__":
    for page_ in PAGES:
        write_examples(Path(sys.argv[1]), page_)
