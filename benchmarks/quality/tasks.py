"""Is a SAGE subset better than a random one where there are no classes?

Each of seven small tasks (`small_tasks.py`) warms a model up on its whole pool and chooses a part
of it. Then a fresh model is trained on each part, for equal steps, from equal weights.

    python -m benchmarks.quality.tasks
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.quality.small_tasks import TASKS, Task
from benchmarks.record import (
    RESULTS,
    Run,
    environment,
    half_width_95,
    kinds,
    mean_of,
    of,
    read,
    table,
    write,
)
from sage_torch import FrequentDirections, select_subset
from sage_torch.gradients import choose_gradients, rows_of

RANDOM, DEFAULT, CLUSTERS, OLD = "random", "default", "within clusters", "old trim"
WARM_UP, STEPS, BATCH, REPEATS = 60, 200, 64, 2
GROUPS = 16
TEXT = """\
## Tasks without classes

`python -m benchmarks.quality.tasks`: small tasks whose targets are no integer classes. A model is
warmed up for {warm_up} steps on the pool and selects {keep:.0%} of it. Then fresh models train on
each subset for {steps} steps, from equal weights, {repeats} times. Means over seeds {seeds}; in
brackets, the difference to random of the same size with its 95 % interval, paired by seed. In
**bold** the interval leaves zero out.

*Default* is `select_subset` without options; the labels of the two binary tasks are 0 or 1, so
that it goes by classes there. *Within clusters* herds within {groups} clusters of the sketched
gradients (spherical k-means, quotas by size). *Old trim* drops what opposes one
consensus of all examples, as `trim="negative"` did before it needed classes. The last row is the
mean over the tasks of the difference, in standard deviations of random over seeds.

Neither cover is clearly ahead of the other, here or on the seeds from 200 on that the choice was
made with. So the simpler one, over all examples, is the default.
"""
Indices = NDArray[np.int64]


def main(
    seeds: Annotated[int, typer.Option(help="How many.")] = 8,
    first: Annotated[int, typer.Option(help="The first; decisions were made from 200 on.")] = 0,
    keep: Annotated[float, typer.Option(help="Share of the pool.")] = 0.25,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "tasks.json",
) -> None:
    """Compare on every task and write the numbers down."""
    torch.set_num_threads(1)
    chosen = range(first, first + seeds)
    where = environment("scikit-learn", seeds=chosen)
    runs = [run for name in TASKS for seed in chosen for run in compared(name, seed, keep)]
    settings = {
        "warm_up": WARM_UP,
        "steps": STEPS,
        "batch": BATCH,
        "repeats": REPEATS,
        "keep": keep,
        "groups": GROUPS,
    }
    question = "Is a SAGE subset better than a random one where there are no classes?"
    write(out, question, where, settings=settings, results=runs)
    typer.echo(_table(runs))


def compared(name: str, seed: int, keep: float) -> Iterator[Run]:
    """Yield one run for each way to choose, all of one task and seed."""
    task = TASKS[name](seed)
    warm = trained(task, np.arange(len(task.pool)), WARM_UP, seed)
    for way, indices in subsets(task, warm, keep, seed).items():
        models = [trained(task, indices, STEPS, seed + 1_000 * again) for again in range(REPEATS)]
        with torch.no_grad():
            values = [task.score(model(task.test[0]), task.test[1]) for model in models]
        value = statistics.mean(values)
        yield {"task": name, "metric": task.metric, "seed": seed, "way": way, "value": value}


def trained(task: Task, indices: Indices, steps: int, seed: int) -> nn.Module:
    """Return a fresh model, trained for some steps on some examples of the pool."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    inputs, targets = (tensor[torch.tensor(indices)] for tensor in task.pool.tensors)
    order = torch.Generator().manual_seed(seed)
    places = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(places) < BATCH:
            places = torch.cat([places, torch.randperm(len(inputs), generator=order)])
        batch, places = places[:BATCH], places[BATCH:]
        optimizer.zero_grad()
        task.loss(model, (inputs[batch], targets[batch])).mean().backward()
        optimizer.step()
    return model.eval()


def subsets(task: Task, warm: nn.Module, keep: float, seed: int) -> dict[str, Indices]:
    """Return the chosen examples of each way."""

    def chosen(**options: Any) -> Any:
        return select_subset(
            warm, task.pool, keep, loss=task.loss, seed=seed, progress=False, **options
        )

    margins = chosen(labels=None).margins
    opposed = float((margins < 0).mean())
    clusters = clusters_of(coordinates(task, warm), GROUPS, seed)
    return {
        RANDOM: chosen(rule="random").indices,  # by class where there are classes
        DEFAULT: chosen().indices,
        CLUSTERS: chosen(labels=clusters, trim=None).indices,
        OLD: chosen(labels=None, trim=min(opposed, 0.999)).indices,
    }


def coordinates(task: Task, warm: nn.Module) -> NDArray[np.float64]:
    """Return the sketched gradients (N, l) of the pool in orthonormal coordinates, at length 1."""
    computer = choose_gradients(warm, task.loss)
    rows: Tensor = rows_of(computer, task.pool.tensors)
    sketch = FrequentDirections(64, rows.shape[1])
    sketch.update(rows)
    found = sketch.project(rows, basis="orthonormal").double().numpy()
    unit: NDArray[np.float64] = found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-30)
    return unit


def clusters_of(unit: NDArray[np.float64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the cluster (N,) of each row of length 1, by spherical k-means."""
    random = np.random.default_rng(seed)
    centres = unit[random.choice(len(unit), count, replace=False)]
    nearest = np.zeros(len(unit), np.int64)
    for _ in range(30):
        nearest = (unit @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, unit)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / norms.clip(1e-30), centres)
    return nearest


def section() -> str:
    """Return what RESULTS.md says of tasks without classes."""
    record = read("tasks.json")
    seeds = f"{record['seeds'][0]} to {record['seeds'][-1]}"
    return TEXT.format(seeds=seeds, **record["settings"]) + "\n" + _table(record["results"])


def _table(runs: list[Run]) -> str:
    ways = [way for (way,) in kinds(runs, "way")]
    rows = []
    for name, metric in kinds(runs, "task", "metric"):
        of_task = of(runs, task=name)
        cells = [f"{mean_of(of(of_task, way=RANDOM), 'value'):.3f}"]
        for way in ways[1:]:
            mean = mean_of(of(of_task, way=way), "value")
            cells.append(f"{mean:.3f} ({_interval(_differences(of_task, way))})")
        rows.append([f"{name} ({metric})", *cells])
    means = [f"{_interval(standardised(runs, way), digits=2)}" for way in ways[1:]]
    rows.append(["mean over tasks, in deviations", "0", *means])
    return table(["task (metric)", *ways], rows)


def standardised(runs: list[Run], way: str) -> list[float]:
    """Return for each seed the mean over tasks of the difference to random, in its deviations."""
    of_tasks = []
    for (name,) in kinds(runs, "task"):
        of_task = of(runs, task=name)
        spread = statistics.stdev(run["value"] for run in of(of_task, way=RANDOM))
        of_tasks.append([value / spread for value in _differences(of_task, way)])
    return [statistics.mean(of_seed) for of_seed in zip(*of_tasks, strict=True)]


def _differences(of_task: list[Run], way: str) -> list[float]:
    pairs = zip(of(of_task, way=way), of(of_task, way=RANDOM), strict=True)
    return [ours["value"] - theirs["value"] for ours, theirs in pairs]


def _interval(values: list[float], digits: int = 3) -> str:
    mean, half = statistics.mean(values), half_width_95(values)
    text = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if abs(mean) > half else text


if __name__ == "__main__":
    typer.run(main)
