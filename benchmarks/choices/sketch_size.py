"""How many rows does a sketch need, and can the energy that it loses tell?

Whole-network projected gradients of small CNNs after one epoch, in the seeded order in which a
selection reads them, sketched with l = 8 to 512 rows. Of each size: the energy kept when 8 l
examples and when all have been seen, and what agreement, trim and herding then have in common
with those of the largest size. Validation seeds, because start, target and cap of
`sketch_size="auto"` were chosen here. `100 classes` are those of Fashion-MNIST, each cut in ten by
k-means.

    python -m benchmarks.choices.sketch_size --data-root DIR
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from torch import Tensor

import sage_torch._core as _core
from benchmarks.quality.trials import Condition, Problem, Training, network, problem
from benchmarks.record import RESULTS, environment, write
from sage_torch import FrequentDirections
from sage_torch.demo.data import DATA_ROOT_VARIABLE
from sage_torch.gradients import ProjectedGradients, rows_of
from sage_torch.gradients.compressed import compressed

SIZES = (8, 16, 32, 64, 128, 256, 512)
CONDITIONS = (
    *((data, noise, 1) for data in ("digits", "fashion-mnist", "cifar-10") for noise in (0.0, 0.2)),
    ("fashion-mnist", 0.0, 10),
)
KEEP = 0.25
PLACES = 8  # examples a row after which `sketch_size="auto"` looks
FIXED = (512, 2_048)
_BATCH = 256


def main(
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with the data sets.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many, from 100 on.")] = 3,
    pool: Annotated[int, typer.Option(help="Training images at most.")] = 10_000,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "sketch_size.json",
) -> None:
    """Measure and write the numbers down."""
    torch.set_num_threads(1)
    where = environment("scipy")
    record = {
        "question": "How many rows does a sketch need, and can the energy that it loses tell?",
        "keep": KEEP,
        "pool": pool,
        **where,
    }
    found: list[dict[str, Any]] = []
    for seed in range(100, 100 + seeds):
        for data, noise, clusters in CONDITIONS:
            condition = Condition(data, noise, split="validation", pool=pool)
            found += measured(condition, clusters, seed, data_root)
            write(out, record | {"results": found})  # as far as it has come


def measured(
    condition: Condition, clusters: int, seed: int, data_root: Path | None
) -> list[dict[str, Any]]:
    """Return one line for each size."""
    task = cut(problem(condition, seed, data_root), clusters, seed)
    training = Training(task, network(condition, task, seed), max(1, len(task) // 64), seed)
    training.epoch(np.arange(len(task)))
    training.model.eval()
    order = _core.Permutation(len(task), seed, 2**32).take(0, len(task))
    rows = gradient_rows(training.model, task, order, seed)
    labels = task.labels.numpy()[order].astype(np.int32)
    quotas = _core.class_quotas(
        np.bincount(labels, minlength=task.classes), round(KEEP * len(task))
    )
    lines, views = [], {}
    for size in SIZES:
        line, views[size] = sketched(rows, labels, quotas, size)
        lines.append(line)
    best = views[SIZES[-1]]
    for size, line in zip(SIZES, lines, strict=True):
        name = condition.data if clusters == 1 else f"{condition.data}, {task.classes} classes"
        line |= {"data": name, "noise": condition.noise, "seed": seed}
        line |= {"examples": len(task), "dim": rows.shape[1]} | compare(views[size], best, labels)
        typer.echo(line)
    return lines


def cut(whole: Problem, clusters: int, seed: int) -> Problem:
    """Return a problem with each class cut into clusters of its images."""
    labels = whole.labels.clone()
    if clusters > 1:
        labels *= clusters
        for one in range(whole.classes):
            places = (whole.labels == one).nonzero()[:, 0]
            points = whole.images[places].flatten(1).numpy()
            found = KMeans(clusters, n_init=1, max_iter=30, random_state=seed).fit_predict(points)
            labels[places] += torch.from_numpy(found).long()
    return replace(whole, labels=labels, classes=clusters * whole.classes)


def gradient_rows(
    model: torch.nn.Module, task: Problem, order: NDArray[np.int64], seed: int
) -> Tensor:
    """Return the rows (N, d) that a selection with `gradients="projected"` would sketch."""
    places = torch.from_numpy(order)
    computer = ProjectedGradients(model, seed=seed)
    of_first = (task.images[places[:_BATCH]], task.labels[places[:_BATCH]])
    final = compressed(computer, "auto", lambda: of_first, seed=seed, memory_budget=2**30)
    return torch.cat(
        [rows_of(final, (task.images[part], task.labels[part])) for part in places.split(_BATCH)]
    )


def sketched(
    rows: Tensor, labels: NDArray[np.int32], quotas: NDArray[np.int64], size: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what a sketch of this size kept and cost, and what selections read from it."""
    start = time.process_time()
    sketch = FrequentDirections(size, rows.shape[1])
    kept_at = {}
    places = sorted({place for place in (PLACES * size, *FIXED) if place < len(rows)})
    for first, last in zip([0, *places], [*places, len(rows)], strict=True):
        sketch.update(rows[first:last])
        kept_at[last] = energy_kept(sketch)
    seconds = time.process_time() - start
    weighted = sketch.project(rows).numpy()
    directions = consensus(weighted, labels, len(quotas))
    margins = _core.margin(weighted, labels, directions)
    kept = _core.herding(
        sketch.project(rows, basis="orthonormal").numpy(), margins, labels, quotas, trim="negative"
    )
    views = {
        "agreement": _core.agreement(weighted, labels, directions),
        "margins": margins,
        "herding": kept,
    }
    line = {
        "sketch_size": size,
        "energy_kept": kept_at[len(rows)],
        "energy_kept_at": {str(place): value for place, value in kept_at.items()},
        "energy_kept_when_asked": kept_at.get(PLACES * size),
        "sketch_seconds": seconds,
    }
    return line, views


def energy_kept(sketch: FrequentDirections) -> float:
    """Return what the certificate says of the rows so far."""
    return float((sketch.singular_values() ** 2).sum()) / sketch.squared_norm


def consensus(
    weighted: NDArray[np.float32], labels: NDArray[np.int32], classes: int
) -> NDArray[np.float64]:
    """Return the exact consensus (C, l)."""
    sums = _core.Consensus(classes, weighted.shape[1])
    sums.add(weighted, labels)
    return sums.directions()


def compare(
    found: dict[str, NDArray[Any]], best: dict[str, NDArray[Any]], labels: NDArray[np.int32]
) -> dict[str, float]:
    """Return what a size and the largest one agree on."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    tops = [
        [top_quarter(views["agreement"][places]) for places in members] for views in (found, best)
    ]
    shared = sum(np.count_nonzero(a & b) for a, b in zip(*tops, strict=True))
    trims = [views["margins"] < 0 for views in (found, best)]
    either = int((trims[0] | trims[1]).sum())
    return {
        "spearman": float(spearmanr(found["agreement"], best["agreement"]).statistic),
        "spearman_of_margins": float(spearmanr(found["margins"], best["margins"]).statistic),
        "top_quarter": float(shared) / sum(len(places) // 4 for places in members),
        "trimmed_by_both": int((trims[0] & trims[1]).sum()) / either if either else 1.0,
        "herding": len(np.intersect1d(found["herding"], best["herding"])) / len(best["herding"]),
    }


def top_quarter(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which ones are among the best quarter; ties by place."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[: len(scores) // 4]] = True
    return chosen


if __name__ == "__main__":
    typer.run(main)
