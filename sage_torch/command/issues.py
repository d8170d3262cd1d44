"""`python -m sage_torch issues`: the examples whose label looks wrong, worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sage_torch.command.failures import check_output, one_line
from sage_torch.command.flags import Force, Saved, Traceback, place_option
from sage_torch.command.objects import make_dataset
from sage_torch.selection.archive import write_whole
from sage_torch.selection.result import Selection
from sage_torch.selection.table import TABLES, table_bytes

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20
_LONGEST = 200  # letters of a text; the terminal cuts it


def issues(
    selection: Saved,
    dataset: Annotated[
        str | None, place_option("Its data set, to name classes and to show texts or files.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Table to write. [default: show the worst]", metavar="FILE.csv|parquet"),
    ] = None,
    force: Force = False,
    traceback: Traceback = False,
) -> None:
    """List the examples whose label looks wrong, the least likely label first.

    With --dataset there are columns with the names of the labels, if the data set has `classes`,
    and with the text of each example, or with its file, if the data set has `samples`.
    """
    with one_line(with_traceback=traceback):
        if out is not None:
            check_output(out, TABLES, force=force)
        loaded = Selection.load(selection)
        found = loaded.issues()
        total = len(loaded.scores)
        if dataset is not None:
            found = found.assign(**_of_dataset(make_dataset(dataset), found, total))
        if out is not None:
            write_whole(out, table_bytes(found, out.suffix.lower()))
    of_all = f"{len(found):,} of {total:,} labels look wrong"
    if out is not None:
        typer.echo(f"{of_all}\nissues  {out}")
        return
    if len(found):
        Console(highlight=False).print(_shown(found.head(_SHOWN)))
    more = f"; the worst {_SHOWN} are shown, --out FILE.csv writes all"
    typer.echo(of_all + (more if len(found) > _SHOWN else ""))


def _of_dataset(data: Any, found: pd.DataFrame, total: int) -> dict[str, list[str]]:
    """Return what a data set says of these examples, by column.

    Raises:
        ValueError: It has another length than the selection.
    """
    if len(data) != total:
        raise ValueError(
            f"expected the data set of the selection, with {total} examples, got {len(data)}; pass "
            "the one that it was made of"
        )
    columns: dict[str, list[str]] = {}
    names: Any = getattr(data, "classes", None)
    for what in ("given", "predicted"):
        labels = found[f"{what}_label"].dropna().tolist()
        is_known = len(labels) == len(found) and _are_texts(names)
        if is_known and all(0 <= label < len(names) for label in labels):
            columns[f"{what}_name"] = [names[label] for label in labels]
    indices = found["index"].tolist()
    if indices and _words(data, indices[0]):  # else they are likely to be pictures or numbers
        columns["example"] = [_words(data, index) for index in indices]
    return columns


def _are_texts(names: Any) -> bool:
    return isinstance(names, Sequence) and all(isinstance(name, str) for name in names)


def _words(data: Any, index: int) -> str:
    """Return the file of an example, or its text; nothing for one that has neither."""
    files = getattr(data, "samples", None)  # as of torchvision's ImageFolder
    item = files[index] if isinstance(files, Sequence) and len(files) == len(data) else data[index]
    parts = item.values() if isinstance(item, Mapping) else item
    if not isinstance(parts, str) and isinstance(item, (Mapping, tuple, list)):
        parts = next((part for part in parts if isinstance(part, str)), "")
    return parts if isinstance(parts, str) else ""


def _shown(rows: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    named = "given_name" in rows, "predicted_name" in rows
    given, predicted = (
        f"{what}_{'name' if is_named else 'label'}"
        for what, is_named in zip(("given", "predicted"), named, strict=True)
    )
    headings = {"index": "index", given: "given", predicted: "suggested"}
    headings |= {"label_score": "probability", "kept": "kept"}
    if rows["duplicate_of"].notna().any():
        headings["duplicate_of"] = "duplicate of"
    if "example" in rows:
        headings["example"] = "example"
    for name, heading in headings.items():
        is_number = name.endswith(("index", "label", "score", "_of"))
        is_text = name == "example"
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(heading, justify=justify, no_wrap=is_text, overflow="ellipsis")
    for row in rows[list(headings)].itertuples(index=False):
        table.add_row(*(_cell(name, each) for name, each in zip(headings, row, strict=True)))
    return table


def _cell(name: str, value: Any) -> str:
    if import_module("pandas").isna(value):
        return ""
    if name == "label_score":
        return f"{value:.3f}"
    if name == "kept":
        return "yes" if value else "no"
    words = " ".join(str(value).split())
    return escape(words[:_LONGEST])
