"""The benchmarks: their layout, and that their pages say what the committed results say."""

from __future__ import annotations

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.record import PROJECT, RESULTS
from benchmarks.results import page

FOLDER = PROJECT / "benchmarks"


def name_of(file: Path) -> str:
    parts = file.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(FOLDER.rglob("*.py"))}


def imports_of(file: Path) -> set[str]:
    """Return the benchmarks' files that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found & set(FILES) - {name_of(file)}


def is_quiet(node: ast.stmt) -> bool:
    """Whether a statement at the top of a file only imports, defines or names something."""
    if isinstance(node, ast.Expr):
        shown = ast.unparse(node)
        return isinstance(node.value, ast.Constant) or shown.startswith("sys.path.append(")
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "__name__ == '__main__'"
    defines = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return isinstance(node, (ast.Import, ast.ImportFrom, *defines))


@pytest.mark.parametrize("name", FILES)
def test_importing_runs_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(name)
    assert capsys.readouterr().out == ""
    assert all(map(is_quiet, ast.parse(FILES[name].read_text()).body))


def test_rooms_are_not_full() -> None:
    assert len(list(FOLDER.glob("*.py"))) <= 2
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_there_are_no_circles() -> None:
    files = {name: imports_of(file) for name, file in FILES.items()}
    assert any(files.values())
    TopologicalSorter(files).prepare()  # raises an error that names the circle
    rooms: dict[str, set[str]] = {}
    for name, imported in files.items():
        room = ".".join(name.split(".")[:2])
        others = {".".join(other.split(".")[:2]) for other in imported}
        rooms.setdefault(room, set()).update(others - {room})
    TopologicalSorter(rooms).prepare()


def test_every_section_is_on_the_page() -> None:
    has_section = {name for name, file in FILES.items() if "\ndef section()" in file.read_text()}
    assert has_section == {section.__module__ for section in page.SECTIONS}


def test_results_page_is_generated() -> None:
    assert page.PAGE.read_text() == page.results_page()


def test_every_result_file_is_used() -> None:
    used = page.PAGE.read_text() + "".join(file.read_text() for file in FILES.values())
    files = [file for file in RESULTS.iterdir() if file.suffix in (".json", ".jsonl", ".png")]
    assert len(files) > 20
    assert [file.name for file in files if file.stem.split("_")[0] not in used] == []


def test_blocks_of_pages_are_those_of_the_results() -> None:
    blocks = 0
    for one in page.pages():
        text = one.read_text()
        blocks += len(page.MARKED.findall(text))
        assert page.with_blocks(text) == text, one
    assert blocks >= 1
    with pytest.raises(ValueError, match=r"expected a block of quality, .*, got 'qualities'"):
        page.with_blocks("<!-- results:qualities -->\n<!-- /results -->")


def test_the_blocks_of_quality_fit_the_first_screen() -> None:
    for block in ("quality", "noisy"):
        _, rule, *rows = page.BLOCKS[block]().splitlines()
        assert len(rows) <= 4
        assert rule.count("---") <= 1 + 5
