"""The README does what it says: its code runs, its table is that of the committed results."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def results_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    path = PROJECT / "benchmarks" / "results.py"
    specification = importlib.util.spec_from_file_location("benchmark_results", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_code_runs(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[place], f"README.md, block {place}", "exec"), {"__name__": "readme"})


def test_there_is_code() -> None:
    assert len(BLOCKS) == 6
    assert len(BLOCKS[0].strip().splitlines()) <= 14  # the first screen stays one


def test_table_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    assert results_script(monkeypatch).with_table(README) == README


def test_results_page_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (PROJECT / "benchmarks" / "RESULTS.md").read_text()
    assert results_script(monkeypatch).results_page() == page


def test_links_lead_somewhere() -> None:
    for text in (README, (PROJECT / "CONTRIBUTING.md").read_text()):
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (PROJECT / link).exists(), link


def test_commands_are_in_the_makefile() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for command in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
