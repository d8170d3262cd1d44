"""README and documentation do what they say: code runs, links lead somewhere, commands exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer.main

from sage_torch.command import application

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
DOCS = sorted((PROJECT / "docs").rglob("*.md"))
PROSE = [README, *DOCS, PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"]
FRAMEWORKS = ("accelerate", "cleanlab", "lightning", "torchdata", "transformers")
# A file or folder of this repository that is named in code, such as `notebooks/quickstart.ipynb`.
FOLDERS = ("benchmarks", "build_support", "docs", "notebooks", "sage_torch", "src", "tests")
NAMED = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")


def blocks(page: Path) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def has_own_code(page: Path) -> bool:
    """Whether a page shows code that the README does not."""
    return bool(set(blocks(page)) - set(blocks(README)))


def shell_lines(page: Path) -> list[str]:
    """What a page shows for a shell: indented lines, and code within a line."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"^    (\S.*)$", text, re.MULTILINE) + re.findall(r"`([^`]+)`", text)


def names(page: Path) -> str:
    return str(page.relative_to(PROJECT))


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Small tensors: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(
    "page", [README, *(page for page in DOCS if has_own_code(page))], ids=names
)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    known: dict[str, object] = {"__name__": "page"}  # a page goes on with what it has made
    for place, code in enumerate(blocks(page)):
        for framework in FRAMEWORKS:
            if re.search(rf"^(import|from) {framework}\b", code, re.MULTILINE):
                pytest.importorskip(framework)
        exec(compile(code, f"{page.name}, block {place}", "exec"), known)


def test_there_is_code() -> None:
    assert len(blocks(README)) == 1
    assert len(blocks(README)[0].strip().splitlines()) <= 17  # the first screen stays one
    assert sum(len(blocks(page)) for page in DOCS) >= 20
    assert blocks(PROJECT / "docs" / "index.md") == blocks(README)


def test_the_readme_takes_three_minutes() -> None:
    text = re.sub(r"```.*?```|<!--.*?-->", "", README.read_text(), flags=re.DOTALL)
    assert len(re.findall(r"[^\s|]+", text)) <= 1_000


@pytest.mark.parametrize("page", PROSE, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PROSE[:-1], ids=names)
def test_named_files_exist(page: Path) -> None:
    for name in NAMED.findall(page.read_text()):
        assert (PROJECT / name).exists(), name


@pytest.mark.parametrize("page", PROSE, ids=names)
def test_commands_are_in_the_makefile(page: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    found = [word for line in shell_lines(page) for word in re.findall(r"\bmake ([a-z]+)", line)]
    assert found or page.name != "README.md"
    for command in found:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command


@pytest.mark.parametrize("page", PROSE, ids=names)
def test_commands_are_on_the_command_line(page: Path) -> None:
    commands = typer.main.get_command(application).commands  # type: ignore[attr-defined]
    for line in shell_lines(page):
        for name, rest in re.findall(r"-m sage_torch ([a-z]+)(.*)", line):
            assert name in commands, line
            options = {option for one in commands[name].params for option in one.opts}
            assert set(re.findall(r"(?<!\S)--[\w-]+", rest)) <= options, line
