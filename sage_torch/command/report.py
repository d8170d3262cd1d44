"""`python -m sage_torch report`: a page about a selection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sage_torch.command.failures import check_output, need, one_line
from sage_torch.command.flags import Force, Saved, Traceback, place_option
from sage_torch.command.objects import make_dataset
from sage_torch.selection.result import Selection


def report(
    selection: Saved,
    dataset: Annotated[str | None, place_option("Its data set, to show examples.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Page to write. [default: beside the selection]", metavar="FILE.html"),
    ] = None,
    force: Force = False,
    traceback: Traceback = False,
) -> None:
    """Write one HTML page about a selection: scores, classes, examples, certificate, command."""
    need("command", jinja2="jinja2", matplotlib="matplotlib", pandas="pandas")
    from sage_torch.report import write_report

    with one_line(with_traceback=traceback):
        page = selection.with_suffix(".html") if out is None else out
        if page.resolve() == selection.resolve():
            raise ValueError(
                "expected another file for the page than for the selection, got "
                f"{os.fspath(page)!r} for both; pass --out"
            )
        loaded = Selection.load(selection)
        for file in (page, page.with_suffix(".csv")):
            check_output(file, (), force=force)
        data = None if dataset is None else make_dataset(dataset)
        write_report(loaded, page, data)
    typer.echo(f"report  {page}")
    typer.echo(f"table   {page.with_suffix('.csv')}")
