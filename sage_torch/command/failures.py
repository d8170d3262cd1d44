"""How commands fail: one line that says what to do, and exit code 1."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import typer

from sage_torch import SageError

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
    except (OSError, ValueError, TypeError, ImportError, SageError) as error:
        if with_traceback:
            typer.echo(traceback.format_exc(), err=True)
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        is_ours = Path(last).is_relative_to(_PACKAGE)
        hint = " (--traceback shows where)" if with_traceback is False and not is_ours else ""
        words = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"error: {words}{hint}", err=True)
        raise typer.Exit(1) from error


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
