"""The command line: `python -m sage_torch demo`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console

from sage_torch.command.failures import need, one_line
from sage_torch.demo.data import DATA_ROOT_VARIABLE, DemoData, load

if TYPE_CHECKING:
    from sage_torch.demo.training import Comparison


class DataName(str, Enum):
    """The values of `--data`."""

    digits = "digits"
    fashion_mnist = "fashion-mnist"


# (seeds, steps, batch size): half a minute for digits, a quarter of an hour else, on two cores.
_DEFAULTS = {DataName.digits: (10, 400, 16), DataName.fashion_mnist: (3, 1_500, 64)}


def demo(
    data: Annotated[DataName, typer.Option(help="The data set.")] = DataName.digits,
    data_root: Annotated[
        Path | None,
        typer.Option(
            envvar=DATA_ROOT_VARIABLE,
            help="Folder with the folder fashion-mnist.",
            metavar="DIR",
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(help="Share of the training examples to keep.", metavar="SHARE")
    ] = 0.25,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of seeds. [default: 10; fashion-mnist 3]", metavar="COUNT"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Training steps per run. [default: 400; fashion-mnist 1500]",
            metavar="COUNT",
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Use a random subset of the training data. [default: all]",
            metavar="COUNT",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the picture and the numbers.", metavar="DIR")
    ] = Path("outputs/demo"),
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPU threads. [default: 1 for digits, else torch's choice]",
            metavar="COUNT",
        ),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Train on all data, on a random subset and on a SAGE subset, and compare.

    Warms a small network up for an epoch, selects with it, trains fresh networks with the same
    number of steps and the same seeds, prints a table, and writes a picture and a JSON.
    """
    need("demo", sklearn="scikit-learn", scipy="scipy", matplotlib="matplotlib")
    from sage_torch.demo.report import as_json, table, verdict
    from sage_torch.demo.training import Plan, compare

    default_seeds, default_steps, batch_size = _DEFAULTS[data]
    plan = Plan(
        keep=keep,
        steps=default_steps if steps is None else steps,
        seeds=tuple(range(default_seeds if seeds is None else seeds)),
        batch_size=batch_size,
    )
    if threads is not None or data is DataName.digits:
        # A layer takes a tenth of a millisecond on digits; threads would mostly wait.
        torch.set_num_threads(threads or 1)
    with one_line():
        loaded = load(data.value, data_root)
        if examples is not None:
            loaded = loaded.with_train_examples(examples)
        out.mkdir(parents=True, exist_ok=True)
        comparison = compare(loaded, plan, progress=progress)
    numbers, picture = out / f"{data.value}.json", out / f"{data.value}.png"
    numbers.write_text(json.dumps(as_json(comparison, loaded), indent=2) + "\n")
    _draw(comparison, loaded, picture)
    console = Console(highlight=False)
    console.print(table(comparison, loaded))
    # Paths and sentences are printed plainly, because a console would break their lines.
    typer.echo(f"\n{verdict(comparison)}\n\npicture  {picture}\nnumbers  {numbers}")


def _draw(comparison: Comparison, data: DemoData, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # needs no screen
    from matplotlib import pyplot

    from sage_torch.plots import overview

    figure = overview(comparison.selections[0], data.train, class_names=data.class_names)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
