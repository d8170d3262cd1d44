"""The README does what it says: its code runs, its links and commands are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_code_runs(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[place], f"README.md, block {place}", "exec"), {"__name__": "readme"})


def test_there_is_code() -> None:
    assert len(BLOCKS) == 6
    assert len(BLOCKS[0].strip().splitlines()) <= 14  # the first screen stays one


def test_links_lead_somewhere() -> None:
    for text in (README, (PROJECT / "CONTRIBUTING.md").read_text()):
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (PROJECT / link).exists(), link


def test_commands_are_in_the_makefile() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for command in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
