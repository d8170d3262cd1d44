"""How many rows does a sketch need where herding compares features, too?

The default rule chooses with the last layer's gradients sketched in l rows, beside the features;
fresh networks train on each subset, as in `benchmarks/quality/quality.py`. Validation data and
seeds: the default of `sketch_size` was chosen here. One JSON line a run, and what is there is not
run again.

    python -m benchmarks.choices.sketch_rows --data-root DIR
    python -m benchmarks.choices.sketch_rows --data-root DIR --data fashion-mnist --sizes 64,16
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from benchmarks.quality import lines
from benchmarks.quality.recipes import recipe
from benchmarks.quality.rivals import OURS, Contest
from benchmarks.quality.runs import load
from benchmarks.quality.trials import Condition, problem
from benchmarks.record import RESULTS, Run, environment, half_width_95, of, table
from sage_torch.demo.data import DATA_ROOT_VARIABLE

FILE = "sketch_rows.jsonl"
FORMER, SIZES = 64, (16, 32)
KEEPS, NOISES = (0.05, 0.15, 0.25, 0.5), (0.0, 0.2)
KINDS = {"images": ("fashion-mnist", "cifar-10"), "text": ("trec", "subj", "sst-2")}
TEXT = """\
## Sketch rows beside features

`python -m benchmarks.choices.sketch_rows --data-root DIR`: validation accuracy of the default's
subset with l rows less that with {former} rows, in points, paired by seed, with the 95 % interval;
5, 15, 25 and 50 % kept, right labels and 20 % flipped, seeds {seeds}. *Seconds* is the median time
of a selection over that with {former} rows. Herding compares features beside the
sketched gradients, so rows beyond the number of classes tell it little: the default is 16, or twice
the number of logits up to {former}. Images and text were measured at two commits. In the tables of
quality, most rows of SUBJ and SST-2 had {former} rows of the sketch.
"""


def main(
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with the data sets.")
    ] = None,
    data: Annotated[str, typer.Option(help="With commas.")] = ",".join(sum(KINDS.values(), ())),
    sizes: Annotated[str, typer.Option(help="Rows, with commas.")] = "64,32,16",
    first_seed: Annotated[int, typer.Option(help="Of validation.")] = 200,
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    out: Annotated[Path, typer.Option(help="JSON lines.")] = RESULTS / FILE,
) -> None:
    """Run what the file does not hold yet."""
    torch.set_num_threads(1)
    rows = [int(size) for size in sizes.split(",")]
    where = environment()
    about = {name: where[name] for name in ("commit", "cpu", "versions")}
    blank = {"sketch_size": 0, "keep": 0.0, "seed": 0}
    done = lines.done(out, asdict(Condition("")) | blank)
    lines.prepare(out)
    for seed, name, noise in product(
        range(first_seed, first_seed + seeds), data.split(","), NOISES
    ):
        condition = Condition(name, noise=noise, split="validation")
        fields = [
            asdict(condition) | {"sketch_size": size, "keep": keep, "seed": seed}
            for keep, size in product(KEEPS, rows)
        ]
        todo = [one for one in fields if lines.key(one) not in done]
        if todo:
            for line in tqdm(_runs(condition, seed, data_root, todo), total=len(todo)):
                lines.append(out, line | {"environment": about})


def _runs(
    condition: Condition, seed: int, data_root: Path | None, todo: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    contest = Contest(condition, problem(condition, seed, data_root), seed)
    steps = recipe(condition.data).steps
    for one in todo:
        OURS["of so many rows"] = {"sketch_size": one["sketch_size"]}
        outcome = contest.run("of so many rows", one["keep"], lambda *_: steps)
        yield one | {"accuracy": outcome.trained.accuracy, "seconds": outcome.selection}


def section() -> str:
    """Return what RESULTS.md says of it."""
    runs = load(FILE, "validation")
    rows = []
    for kind, names in KINDS.items():
        for size in SIZES:
            gains = [gain for name in names for gain in _gains(of(runs, data=name), size)]
            if not gains:
                continue
            points = [gain for gain, _ in gains]
            shown = f"{mean(points):+.2f} ± {half_width_95(points):.2f}"
            seconds = median(ratio for _, ratio in gains)
            rows.append([kind, str(size), shown, str(len(points)), f"{seconds:.2f}"])
    seeds = sorted({run["seed"] for run in runs})
    text = TEXT.format(former=FORMER, seeds=f"{seeds[0]} to {seeds[-1]}")
    return text + "\n" + table(["data", "l", "points", "pairs", "seconds"], rows)


def _gains(runs: list[Run], size: int) -> Iterator[tuple[float, float]]:
    """Yield points and seconds of a size against the former one, a pair for each run of both."""
    former = {_pair(run): run for run in of(runs, sketch_size=FORMER)}
    for run in of(runs, sketch_size=size):
        other = former.get(_pair(run))
        if other is not None:
            yield run["accuracy"] - other["accuracy"], run["seconds"] / other["seconds"]


def _pair(run: Run) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("noise", "keep", "seed"))


if __name__ == "__main__":
    typer.run(main)
