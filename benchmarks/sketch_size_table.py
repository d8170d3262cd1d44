"""The part of RESULTS.md on how many rows a sketch needs."""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.record import RESULTS
from sage_torch.options import FIRST_ROWS
from sage_torch.passes.growth import EXAMPLES_A_ROW, MOST_ROWS, TARGET

TEXT = """\
## Sketch size: what more rows are good for

`python -m benchmarks.choices.sketch_size --data-root DIR`: whole-network projected gradients of a small CNN
after one epoch, up to {pool:,} training images, means over {seeds} validation seeds. Of l rows: the
energy kept when 8 l examples and when all have been seen; against 512 rows, the rank correlation of
agreement, the share of each class's top quarter found, and the share of the trimmed that both trim.
Rows in **bold** are what `sketch_size="auto"` chooses: it begins with {first} and doubles while
over {target:.0%} of the energy of the first {places} l examples is lost, up to {most} rows.

The energy lost is no measure of how good a ranking is: with 64 rows agreement is within 0.03 of
that of 512 in rank correlation, whether a third of the energy is kept or nearly all: classes fill
the strongest rows, and what tells examples of a class apart has a flat spectrum. So the start is
the default, and the target, three quarters, is a compromise and no threshold that the data show: it
finds the one case here with too few rows, 100 classes, whose trim would want still more, and it
costs CIFAR-10 rows that change little. What is read early is optimistic: energy kept goes on
falling. Herding answers any change of a sketch with another choice (it shares {herding:.0%} of its
quarter with that of 512 rows; chance is 25%), so nothing is read from that.

| data | l | kept at 8 l | kept | Spearman | top quarter | trimmed | sketch, s |
|---|---|---|---|---|---|---|---|"""


def sketch_size_section() -> list[str]:
    """Return what sizes keep, or nothing."""
    path = RESULTS / "sketch_size.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    runs = record["results"]
    lines = [
        TEXT.format(
            pool=record["pool"],
            seeds=len({run["seed"] for run in runs}),
            first=FIRST_ROWS,
            target=TARGET,
            places=EXAMPLES_A_ROW,
            most=MOST_ROWS,
            herding=_mean([run for run in runs if run["sketch_size"] < MOST_ROWS], "herding"),
        )
    ]
    for data, noise in dict.fromkeys((run["data"], run["noise"]) for run in runs):
        here = [run for run in runs if (run["data"], run["noise"]) == (data, noise)]
        chosen = {_chosen(here, seed) for seed in {run["seed"] for run in here}}
        for size in dict.fromkeys(run["sketch_size"] for run in here):
            of_size = [run for run in here if run["sketch_size"] == size]
            lines.append(_row(data, noise, of_size, is_chosen=size in chosen))
    return ["\n".join(lines) + "\n"]


def _chosen(runs: list[dict[str, Any]], seed: int) -> int:
    """Return what would be chosen; a sketch that has grown keeps a little less than measured."""
    size = FIRST_ROWS
    asked = {run["sketch_size"]: run for run in runs if run["seed"] == seed}
    while size < MOST_ROWS and EXAMPLES_A_ROW * size <= asked[size]["examples"] // 2:
        if 1 - asked[size]["energy_kept_when_asked"] <= TARGET:
            break
        size *= 2
    return size


def _row(data: str, noise: float, runs: list[dict[str, Any]], *, is_chosen: bool) -> str:
    mark = "**" if is_chosen else ""
    name = data + (f", {noise:.0%} wrong labels" if noise else "")
    is_asked = all(run["energy_kept_when_asked"] is not None for run in runs)
    early = f"{_mean(runs, 'energy_kept_when_asked'):.2f}" if is_asked else "-"
    return (
        f"| {name} | {mark}{runs[0]['sketch_size']}{mark} | {early} "
        f"| {_mean(runs, 'energy_kept'):.2f} | {_mean(runs, 'spearman'):.4f} "
        f"| {_mean(runs, 'top_quarter'):.3f} | {_mean(runs, 'trimmed_by_both'):.2f} "
        f"| {_mean(runs, 'sketch_seconds'):.1f} |"
    )


def _mean(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(run[name] for run in runs)
