"""The command line: `python -m sage_torch`, and the command `sage-torch`."""

from __future__ import annotations

from typing import Annotated

import typer

from sage_torch.command.demo import demo
from sage_torch.command.doctor import doctor
from sage_torch.command.issues import issues
from sage_torch.command.recut import recut
from sage_torch.command.report import report
from sage_torch.command.select import select
from sage_torch.version import __version__

__all__ = ["application"]

application = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sage-torch {__version__}")
        raise typer.Exit


@application.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_tell_version),
    ] = False,
) -> None:
    """SAGE: choose the training examples worth a gradient step."""


for _command in (select, recut, issues, report, doctor, demo):
    application.command()(_command)
