"""How long does another cut of a million examples take, and how much memory?

The selection is made of random numbers: what a cut costs depends on their shape, and on the labels.
Bytes are the memory that the cut took at its highest (Linux), over what was held before: the
selection with its coordinates.

    python -m benchmarks.speed.recut
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.record import RESULTS, environment, in_own_process, read, spread, table, write
from benchmarks.speed.peak_memory import resident_peak, restarted_peak
from sage_torch import Selection
from sage_torch.options import Options
from sage_torch.selection.coordinates import Coordinates

CLASSES, SKETCH, FEATURES, SAMPLE = 10, 64, 64, 16_384
CUTS: dict[str, dict[str, Any]] = {
    "keep=0.1": {"keep": 0.1},
    'keep=0.5, quotas="equal"': {"keep": 0.5, "quotas": "equal"},
    "trim=None": {"trim": None},
    'rule="agreement"': {"rule": "agreement"},
}
TEXT = """\
## Another cut without gradients

`python -m benchmarks.speed.recut`; {cpu}, {threads} thread(s), medians of {runs}. `Selection.recut`
of a selection in streaming mode with `keep_coordinates=True`: {classes} classes, {width} numbers an
example, random ones. Memory is what the cut took at its highest, over the {held} MB that the
selection holds.
"""


def main(
    total: Annotated[int, typer.Option(help="Number of examples N.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="Timings of each.")] = 3,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "recut.json",
    only: Annotated[str, typer.Option(help="One of the cuts.", hidden=True)] = "",
) -> None:
    """Measure and write the numbers down."""
    if only:
        typer.echo(json.dumps(measured(total, CUTS[only])))
        return
    where, results = environment(), []
    for name in CUTS:
        arguments = ("benchmarks.speed.recut", "--total", str(total), "--only", name)
        found = [json.loads(in_own_process(*arguments)) for _ in range(rounds)]
        results.append(
            {
                "cut": name,
                "seconds": spread([one["seconds"] for one in found]),
                "bytes": max(one["bytes"] for one in found),
                "held": found[0]["held"],
            }
        )
        typer.echo(results[-1])
    settings = {"total": total, "classes": CLASSES, "width": SKETCH + FEATURES}
    write(out, "What does another cut cost?", where, settings=settings, results=results)


def measured(total: int, cut: dict[str, Any]) -> dict[str, Any]:
    """Return seconds and bytes of one cut."""
    selection = made(total)
    held = sum(each.nbytes for each in vars(selection).values() if isinstance(each, np.ndarray))
    assert selection.coordinates is not None
    before, start = restarted_peak(), time.perf_counter()
    found = selection.recut(**cut)
    seconds = time.perf_counter() - start
    assert len(found) == found.settings["k"]
    return {
        "seconds": seconds,
        "bytes": resident_peak() - before,
        "held": held + selection.coordinates.rows.nbytes,
    }


def made(total: int) -> Selection:
    """Return a selection of random numbers, as streaming mode makes it."""
    random = np.random.default_rng(0)
    rows = np.empty((total, SKETCH + FEATURES), np.float16)
    for start in range(0, total, 2**16):
        part = rows[start : start + 2**16]
        both = random.normal(size=(len(part), 2, SKETCH)).astype(np.float32)
        both /= np.linalg.norm(both, axis=2, keepdims=True)
        part[:] = both.reshape(part.shape)
    sample = np.sort(random.choice(total, min(total, SAMPLE), replace=False))
    known = {"rho": 0.1, "skill": 0.5, "trust": 1.0, "to_learn": 1.0}
    options = Options(keep=0.25, consensus="streaming", keep_coordinates=True)
    return Selection(
        indices=np.arange(0, total, 4),
        scores=random.uniform(-1, 1, total).astype(np.float32),
        labels=random.integers(0, CLASSES, total),
        certificate=None,
        seconds={},
        settings=options.as_json() | {"shards": 1, "classes": CLASSES},
        margins=random.uniform(-1, 1, total).astype(np.float32),
        probabilities=random.uniform(0, 1, total).astype(np.float32),
        is_wrong=(random.uniform(0, 1, total) ** 4).astype(np.float32),
        predicted=random.integers(0, CLASSES, total).astype(np.int32),
        label_scores=random.uniform(0, 1, total).astype(np.float32),
        coordinates=Coordinates(rows, SKETCH, sample, known, looked=True),
    )


def section() -> str:
    """Return what RESULTS.md says of other cuts."""
    record = read("recut.json")
    settings, results = record["settings"], record["results"]
    rows = [
        [
            f"`{one['cut']}`",
            f"{settings['total']:,}",
            f"{one['seconds']['median']:.1f}",
            f"{one['bytes'] / 1e6:.0f}",
        ]
        for one in results
    ]
    text = TEXT.format(
        cpu=record["cpu"],
        threads=record["threads"],
        runs=results[0]["seconds"]["runs"],
        held=f"{results[0]['held'] / 1e6:.0f}",
        **settings,
    )
    return text + "\n" + table(["cut", "N", "seconds", "MB"], rows)


if __name__ == "__main__":
    typer.run(main)
