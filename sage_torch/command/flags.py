"""What several commands take: flags for the options of a selection, files to read and write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sage_torch.command.values import scalar
from sage_torch.options import Options

Saved = Annotated[
    Path,
    typer.Argument(help="File of `select` or `recut`.", metavar="FILE.npz", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that exists.")]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="On an error, show where it came from.")
]

OUTPUTS = "FILE.npz|parquet|csv|txt"
# The first sentence of an option's help, by its name.
WORDS = {
    each.name: each.metadata["help"].partition(". ")[0].removesuffix(".") + "."
    for each in dataclasses.fields(Options)
    if "help" in each.metadata
}


def value_option(words: str, metavar: str = "VALUE") -> Any:
    """Return an option that takes a number or a word, as `scalar` reads it."""
    return typer.Option(help=words, parser=scalar, metavar=metavar)


def place_option(words: str, metavar: str = "MODULE:NAME") -> Any:
    """Return an option that takes a text; "none" is None."""
    return typer.Option(help=words, parser=_text, metavar=metavar)


def option_flag(option: dataclasses.Field[Any]) -> Any:
    """Return the type by which a command takes an option of `Options`."""
    words, given_as = WORDS[option.name], option.metadata["given_as"]
    if given_as == "value":
        return Annotated[Any, value_option(words)]
    if given_as == "switch":
        return Annotated[bool | None, typer.Option(help=words)]
    if given_as == "names":
        words += " Or MODULE:NAME for a predicate. Repeatable."
        return Annotated[list[str] | None, typer.Option(help=words, metavar="PATTERN")]
    return Annotated[
        str | None, place_option(words, "DIR" if given_as == "folder" else "MODULE:NAME")
    ]


def _text(given: Any) -> str | None:
    if not isinstance(given, str):
        raise typer.BadParameter(f"expected a text, got {given!r}")
    return None if given == "none" else given
