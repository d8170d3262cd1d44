"""The package is a house with rooms: few loose files, no circles, no file that imports the whole.

That a folder imports only what lies below it is checked by import-linter (`make check`).
"""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sage_torch"
LOOSE, LONGEST = 7, 400
Graph = dict[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Every file by its dotted name; a folder's `__init__` has the folder's."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, names: dict[str, Path]) -> set[str]:
    """The files of the package that one imports, in functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            source = node.module or ""
            found |= {f"{source}.{each.name}" for each in node.names} & set(names) or {source}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return {name for name in found if name == "sage_torch" or name in names}


@cache
def graph_of(package: Path) -> Graph:
    names = modules(package)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in names.items()}
    return {name: imported(tree, names) - {name} for name, tree in trees.items()}


def room(name: str) -> str:
    """The folder of a module, or the loose file."""
    return name.split(".")[1] if "." in name else name


def assert_no_circle(graph: Graph) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_no_file_imports_the_package_that_imports_it() -> None:
    graph = graph_of(PACKAGE)
    for name in graph:
        assert "sage_torch" not in graph[name], f"{name} imports sage_torch itself"


def test_files_have_no_circle() -> None:
    graph = graph_of(PACKAGE)
    assert len(graph) > 80
    assert_no_circle(graph)


def test_folders_have_no_circle() -> None:
    graph: Graph = {}
    for name, others in graph_of(PACKAGE).items():
        if name != "sage_torch":
            graph.setdefault(room(name), set()).update(room(other) for other in others)
    assert_no_circle({name: others - {name} for name, others in graph.items()})


def test_few_files_lie_loose_and_none_is_long() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= LOOSE
    for path in modules(PACKAGE).values():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST, f"{path.name} has {lines} lines"


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    house = tmp_path / "sage_torch"
    house.mkdir()
    (house / "one.py").write_text("def f():\n    from sage_torch.two import g\n")
    (house / "two.py").write_text("import sage_torch.one as one\n")
    with pytest.raises(pytest.fail.Exception, match="a circle of imports"):
        assert_no_circle(graph_of(house))
