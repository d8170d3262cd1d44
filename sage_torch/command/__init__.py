"""The command line: `python -m sage_torch`, and the command `sage-torch`."""

from __future__ import annotations

import typer

from sage_torch.command.demo import demo
from sage_torch.command.doctor import doctor
from sage_torch.command.report import report
from sage_torch.command.select import select

__all__ = ["application"]

application = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@application.callback()
def main() -> None:
    """SAGE: choose the training examples worth a gradient step."""


for _command in (select, report, doctor, demo):
    application.command()(_command)
