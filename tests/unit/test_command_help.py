"""What the command line says of itself."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from sage_torch.command import application
from sage_torch.version import __version__

COMMANDS = ("select", "recut", "issues", "report", "doctor", "demo")
# As typer writes the type of an option that has no word for what it takes.
OF_PYTHON = re.compile(r"<(str|int|float|bool|list|tuple|Any)\b|Literal|Optional|\bNone\b|Union\[")


def said(*arguments: str) -> str:
    done = CliRunner().invoke(application, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_all_commands_are_listed() -> None:
    assert tuple(typer.main.get_command(application).commands) == COMMANDS  # type: ignore[attr-defined]
    for command in COMMANDS:
        assert f"\n  {command} " in said("--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_no_types_of_python(command: str) -> None:
    text = said(command, "--help")
    assert OF_PYTHON.search(text) is None, text
    assert re.search(r"\w\.\.\s", text) is None, "two full stops"


@pytest.mark.parametrize("command", ["select", "recut", "issues", "report"])
def test_what_writes_can_be_forced(command: str) -> None:
    assert re.search(
        r"--out .*\n(.*\n)*\s+--force\s+Write over a file that exists\.", said(command, "--help")
    )


def test_the_version() -> None:
    assert said("--version") == f"sage-torch {__version__}\n"
