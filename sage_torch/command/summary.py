"""The summary of a selection on the command line: one table, and what comes next."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sage_torch.selection.facts import label_facts, trim_facts, trims_by_margin
from sage_torch.selection.result import Selection


def tell(selection: Selection, out: str) -> None:
    """Print the summary of a selection, where it was written to, and what to do with the file."""
    Console(highlight=False).print(summary(selection))
    # Plainly, because a console would break the lines.
    typer.echo(f"selection  {out}")
    if Path(out).suffix.lower() == ".npz":
        typer.echo(f"report     sage-torch report {shlex.quote(out)}")
        if selection.is_wrong is not None:
            typer.echo(f"labels     sage-torch issues {shlex.quote(out)}")


def summary(selection: Selection) -> Table:
    """Return a table with the main numbers of a selection, one per row."""
    settings, kept, total = selection.settings, len(selection.indices), len(selection.scores)
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    table.add_row("kept", f"{kept:,} of {total:,} examples ({kept / total:.1%})")
    table.add_row("rule", escape(f"{settings.get('rule')}, draw {settings.get('draw')}"))
    if selection.labels is not None:
        labels = selection.labels
        table.add_row(
            "classes",
            f"{len(set(labels[selection.indices].tolist())):,} kept of "
            f"{len(set(labels.tolist())):,}",
        )
    if trimmed := trim_facts(settings):
        words = (f"{number} {words.removeprefix('trimmed ')}" for number, words in trimmed)
        table.add_row("trimmed", ", ".join(words))
    if of_labels := label_facts(selection):
        table.add_row("labels", ", ".join(f"{number} {words}" for number, words in of_labels))
    if selection.margins is not None and trims_by_margin(settings):
        negative = int((selection.margins < 0).sum())
        table.add_row("below 0", f"{negative:,} margins: examples that side with another class")
    if selection.certificate is not None:
        low, high = selection.certificate.energy_kept, selection.certificate.energy_kept_at_most
        table.add_row("sketch", f"holds {low:.1%} to {high:.1%} of the gradients' energy")
    if settings.get("gradients") is not None:
        table.add_row("gradients", escape(str(settings["gradients"])))
    table.add_row("seconds", f"{selection.seconds.get('total', float('nan')):.1f}")
    return table
