"""The rules of the layout: who imports whom, where tests lie, how long files and functions are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
FOLDERS = ("data", "models", "utils", "tools")
TOP_LEVEL = ("logger", "lr_scheduler", "optimizer", "main_simmim", "main_finetune")
# Leaves of utils, which import each other and nothing else of the project.
LEAVES = {f"utils.{path.stem}" for path in (ROOT / "utils").glob("*.py")} - {"utils.__init__"}
# Folder or file -> which others it may import; the longest name counts.
MAY_IMPORT = {
    "utils": LEAVES,
    "utils.config": LEAVES,
    "utils.processes": LEAVES,
    "optimizer": LEAVES,
    "lr_scheduler": LEAVES,
    "logger": LEAVES,
    "utils.checkpoints": LEAVES | {"utils.config", "utils.processes", "optimizer", "lr_scheduler"},
    "utils.training": LEAVES
    | {"utils.checkpoints", "utils.config", "utils.processes"}
    | {"logger", "lr_scheduler", "optimizer"},
    "data": LEAVES | {"utils.processes"},
    "models": LEAVES | {"utils.checkpoints.reading"},
    "models.build": LEAVES | {"utils.checkpoints", "utils.config"},
    "main_simmim": {"data", "models", "utils", "logger"},
    "main_finetune": {"data", "models", "utils", "logger"},
    "tools": {"data", "models", "utils", "logger", "optimizer"},
}
# Entry points, tools, the configuration's own files, the builders, and what joins a run's parts.
READS_CONFIG = (
    *("main_simmim", "main_finetune", "tools.", "utils.config", "models.build", "data.build"),
    *("optimizer", "lr_scheduler", "utils.checkpoints", "utils.training"),
)


def sources() -> dict[str, Path]:
    files = [*ROOT.glob("*.py"), *(f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py"))]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def project_imports(file: Path) -> set[str]:
    """Modules of the project that a file names, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & set(sources()) or {node.module}
    return {name for name in found if name.split(".")[0] in {*FOLDERS, *TOP_LEVEL}}


def is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}.")


@pytest.mark.parametrize("name", sorted(sources()))
def test_imports_run_one_way(name: str) -> None:
    rule = max((folder for folder in MAY_IMPORT if is_in(name, folder)), key=len)
    own = rule if rule in FOLDERS or rule.count(".") == 1 else name
    own = "models" if rule == "models.build" else own
    for imported in project_imports(sources()[name]):
        allowed = {own, *MAY_IMPORT[rule]} - ({"utils"} if own == "utils" else set())
        assert any(is_in(imported, folder) for folder in allowed), imported


def program_of(name: str) -> str:
    """The tool, `tools.NAME`, that a file is part of; empty for what tools share."""
    tool = ".".join(name.split(".")[:2])
    main = sources().get(f"{tool}.__main__", sources().get(tool))
    return tool if main is not None and "\n    run_program(main)" in main.read_text() else ""


@pytest.mark.parametrize("name", sorted(name for name in sources() if is_in(name, "tools")))
def test_tools_do_not_import_each_other(name: str) -> None:
    """What two of them share lies in tools/measuring or below."""
    others = {program_of(found) for found in project_imports(sources()[name])}
    assert others <= {"", program_of(name)}


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {name: project_imports(file) for name, file in sources().items()}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in graph.get(name, ()):
                # A package offers what its files hold; they may name it.
                if not path or not is_in(name, imported):
                    visit(imported, (*path, name))
            done.add(name)

    done: set[str] = set()
    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("folder", sorted(path.parent for path in sources().values()))
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    if folder != ROOT:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize("name", sorted(sources()))
def test_only_builders_and_entry_points_know_the_configuration(name: str) -> None:
    text = sources()[name].read_text()
    if re.search(r"^\s*(from|import) yacs", text, re.MULTILINE) or "cfg." in text:
        assert name.startswith(READS_CONFIG)


@pytest.mark.parametrize("name", sorted(sources()))
def test_files_and_functions_stay_small(name: str) -> None:
    text = sources()[name].read_text()
    longest = 400
    assert text.count("\n") <= longest
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # Arguments, one a line, are no complexity, and comments are welcome.
            body = text.splitlines()[node.body[0].lineno - 1 : node.end_lineno]
            code = [line for line in body if line.strip() and not line.lstrip().startswith("#")]
            assert len(code) <= 45, node.name


@pytest.mark.parametrize(
    "name", sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py"))
)
def test_no_file_imports_a_file_of_tests(name: str) -> None:
    """What several files of tests need lies in tests/support."""
    for node in ast.walk(ast.parse((TESTS / name).read_text())):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or "", *(alias.name for alias in node.names)]
        else:
            continue
        assert not [word for word in ".".join(imported).split(".") if word.startswith("test_")]


def test_the_tests_of_a_folder_lie_in_a_folder_of_its_name() -> None:
    program = {path.relative_to(ROOT) for path in (f.parent for f in sources().values())}
    tests = {path.relative_to(TESTS).parent for path in TESTS.rglob("test_*.py")}
    assert tests - {Path("full_size"), Path("gpu")} == program
