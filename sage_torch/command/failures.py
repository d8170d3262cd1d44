"""Failures of commands: one line that says what to do, and exit code 1."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import typer

from sage_torch.selection.table import TABLES, check_installed

_PACKAGE = Path(__file__).parents[1]


@contextmanager
def one_line(*, with_traceback: bool | None = None) -> Iterator[None]:
    """Turn an error in the block into one line on standard error, and exit with code 1.

    Args:
        with_traceback: Whether to print the traceback too; None for a command without that option,
            which runs no foreign code.

    Raises:
        typer.Exit: The block raised an error.
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


def check_output(path: Path, endings: Sequence[str], *, force: bool) -> None:
    """Check before the work starts that its result can be written to a file.

    Args:
        path: The file.
        endings: Those that its name may have; any, if there are none.
        force: Whether it may be there already.

    Raises:
        ValueError: The name ends otherwise, the path is a folder, its folder does not exist or is
            not writable, or the file exists.
        ImportError: A table is asked for, and what writes it is not installed.
    """
    shown, folder, ending = repr(os.fspath(path)), path.parent, path.suffix.lower()
    if path.is_dir() or not path.name:
        raise ValueError(f"expected a file to write, got the folder {shown}; name one")
    if endings and ending not in endings:
        raise ValueError(
            f"expected a file to write that ends in {', '.join(endings)}, which says what is "
            f"written, got {shown}"
        )
    if ending in TABLES:
        check_installed(ending)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"expected a folder to write {path.name!r} in, but there is no {os.fspath(folder)!r} "
            "that takes files; make it first"
        )
    if path.exists() and not force:
        raise ValueError(
            f"expected a new file to write, but {shown} exists; pass --force to write over it"
        )


def need(extra: str, /, **packages: str) -> None:
    """Check that packages are installed, and name the missing ones on standard error.

    Args:
        extra: The extra of sage-torch that installs them.
        packages: Package names by module names.

    Raises:
        typer.Exit: A package is missing.
    """
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        typer.echo(
            f"error: {', '.join(missing)} not installed; pip install 'sage-torch[{extra}]'",
            err=True,
        )
        raise typer.Exit(1)
