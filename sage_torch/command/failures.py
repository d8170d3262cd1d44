"""How commands fail: one line that says what to do, and exit code 1."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import typer

_PACKAGE = Path(__file__).parents[1]


@contextmanager
def one_line(*, with_traceback: bool | None = None) -> Iterator[None]:
    """Turn a failure within into one line on standard error, and exit with 1.

    Args:
        with_traceback: Whether to print where it came from, too; None where no code of the user's
            runs.

    Raises:
        typer.Exit: What was done within failed.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, AssertionError) as error:
        if with_traceback:
            typer.echo(traceback.format_exc(), err=True)
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        is_ours = Path(last).is_relative_to(_PACKAGE)
        hint = " (--traceback shows where)" if with_traceback is False and not is_ours else ""
        words = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"error: {words}{hint}", err=True)
        raise typer.Exit(1) from error


def check_writable(path: Path) -> None:
    """Refuse, before work starts, a file that could not be written when it is done.

    Raises:
        ValueError: It is a folder, or its folder does not exist or takes no files.
    """
    folder = path.parent
    if path.is_dir() or not path.name:
        raise ValueError(f"expected a file to write, got the folder {os.fspath(path)!r}")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"expected a folder to write {path.name!r} in, but there is no {os.fspath(folder)!r} "
            "that takes files; make it first"
        )


def need(extra: str, /, **packages: str) -> None:
    """Refuse to go on without some packages.

    Args:
        extra: What of sage-torch brings them.
        packages: The name to install by the name to import.

    Raises:
        typer.Exit: Some are missing; they have been named on standard error.
    """
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        typer.echo(
            f"error: {', '.join(missing)} not installed; pip install 'sage-torch[{extra}]'",
            err=True,
        )
        raise typer.Exit(1)
