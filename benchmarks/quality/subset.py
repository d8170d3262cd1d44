"""Does a SAGE subset train a better model than a random one of the same size?

The demo's comparison (`python -m sage_torch demo`) with its defaults: equal steps, equal seeds,
the same initialisation.

    python -m benchmarks.quality.subset --data digits --seeds 10
    python -m benchmarks.quality.subset --data fashion-mnist --data-root DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.record import RESULTS, environment, read, table, write
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load
from sage_torch.demo.report import as_json, verdict
from sage_torch.demo.training import Plan, compare

TEXT = """\
## The demo: equal steps, equal seeds

`python -m benchmarks.quality.subset`: a small CNN is warmed up for an epoch and selects; then a
fresh one is trained on each set. Cells give the test accuracy in %, mean ± standard deviation over
seeds. *Random* is class-balanced and has as many examples. Differences are paired by seed.
"""
# (seeds, steps, batch size), as in the demo.
DEFAULTS = {"digits": (10, 400, 16), "fashion-mnist": (5, 1_500, 64)}


def main(
    data: Annotated[str, typer.Option(help="digits or fashion-mnist")] = "digits",
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with fashion-mnist/.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the examples.")] = 0.25,
    seeds: Annotated[int | None, typer.Option(help="How many.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every run.")] = None,
    examples: Annotated[int | None, typer.Option(help="A random part of the data.")] = None,
) -> None:
    """Compare and write the numbers down."""
    default_seeds, default_steps, batch_size = DEFAULTS[data]
    plan = Plan(
        keep=keep,
        steps=steps or default_steps,
        seeds=tuple(range(seeds or default_seeds)),
        batch_size=batch_size,
    )
    loaded = load(data, data_root)
    if examples is not None:
        loaded = loaded.with_train_examples(examples)
    where = environment()  # of the code that runs, not of what is committed meanwhile
    comparison = compare(loaded, plan, progress=False)
    question = "Does a SAGE subset train a better model than a random one of the same size?"
    out = RESULTS / f"subset_{data}_{keep}.json"
    write(out, question, where, results=as_json(comparison, loaded))
    typer.echo(verdict(comparison))


def section() -> str:
    """Return what RESULTS.md says of the demo: one row a data set and budget."""
    rows = []
    for file in sorted(RESULTS.glob("subset_*.json")):
        found = read(file.name)["results"]
        methods, gain = found["methods"], found["sage_minus_random"]
        seconds = [one["seconds"]["total"] for one in found["selections"]]
        accuracies = [
            f"{methods[name]['accuracy_mean']:.2f} ± {methods[name]['accuracy_deviation']:.2f}"
            for name in ("full data", "random subset", "SAGE subset")
        ]
        rows.append(
            [
                f"[{found['data']['name']}](results/{file.name})",
                f"{methods['SAGE subset']['examples']:,} of {found['data']['train_examples']:,}",
                str(len(found["plan"]["seeds"])),
                *accuracies,
                f"{gain['mean']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})",
                f"{sum(seconds) / len(seconds):.1f}",
            ]
        )
    heads = ["data", "kept", "seeds", "full data", "random", "SAGE"]
    return TEXT + "\n" + table([*heads, "SAGE − random (95 %)", "selection, s"], rows)


if __name__ == "__main__":
    typer.run(main)
