"""Herding at scale: seconds, linear in N, and the memory of a stream.

Rows of 64 coordinates in classes, a tenth kept: all at once (the core's function) and as a stream
of blocks, whose rows are computed batch by batch and never held together.

    python -m benchmarks.speed.selection
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

import sage_torch._core as _core
from benchmarks.record import (
    RESULTS,
    Run,
    environment,
    in_own_process,
    kinds,
    of,
    read,
    table,
    write,
)
from benchmarks.speed.peak_memory import resident_peak, restarted_peak

WIDTH, KEEP, BATCH = 64, 0.1, 256
EXAMPLES, CLASSES, THREADS = (250_000, 500_000, 1_000_000), (1_000, 10), (1, 2)
TEXT = """\
## Herding at a million examples

`python -m benchmarks.speed.selection`; {cpu}; given rows of {width} coordinates, keep {keep}.
Seconds are those of the rule alone. *Peak* is the peak memory at 1,000,000 examples, over what was
held before. *Stream* takes rows in batches of {batch_size} and forgets them. There a class holds a
block of at most 1,024 rows, so 1,000 classes of 1,000 hold all of their rows. The seconds of a
class grow faster than the class until its blocks are full (4,096 rows at once, 1,024 in a stream).
So with 1,000 classes they grow more than linearly here, and with 10 linearly. Same subset by thread
count: {same}. (The file also has the figures of facility location, which is no longer a rule.)
"""
Batch = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]


def batches(examples: int, classes: int) -> Iterator[Batch]:
    """Yield rows (n, 64) around the centres of their classes, margins, class ids and indices."""
    centres = np.random.default_rng(0).standard_normal((classes, WIDTH), dtype=np.float32)
    for start in range(0, examples, BATCH):
        random = np.random.default_rng([1, start])
        indices = np.arange(start, min(start + BATCH, examples))
        ids = (indices % classes).astype(np.int32)
        rows = centres[ids] + random.standard_normal((len(ids), WIDTH), dtype=np.float32)
        yield rows, random.uniform(-0.1, 1.0, len(ids)).astype(np.float32), ids, indices


def measured(examples: int, classes: int, threads: int, way: str) -> dict[str, Any]:
    """One run in this process; seconds of the core alone."""
    torch.set_num_threads(threads)
    sizes = np.bincount(np.arange(examples) % classes)
    quotas = _core.class_quotas(sizes.tolist(), round(KEEP * examples))
    if way == "at once":
        parts = [np.concatenate(part) for part in zip(*batches(examples, classes), strict=True)]
        rows, margins, ids, _ = parts
        before, start = restarted_peak(), time.perf_counter()
        chosen = _core.herding(rows, margins, ids, quotas, trim="negative")
        seconds = time.perf_counter() - start
    else:
        stream = _core.BlockStream(sizes, quotas, width=WIDTH, trim="negative")
        before, seconds = restarted_peak(), 0.0
        for batch in batches(examples, classes):
            start = time.perf_counter()
            stream.add(*batch)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        chosen = stream.finish()
        seconds += time.perf_counter() - start
    assert len(chosen) == round(KEEP * examples)
    about = {"rule": "herding", "examples": examples, "classes": classes, "threads": threads}
    return about | {
        "way": way,
        "seconds": seconds,
        "peak_bytes": resident_peak() - before,
        "digest": int((chosen * (np.arange(len(chosen)) % 1_009 + 1)).sum()),
    }


def main(
    only: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure and write the numbers down."""
    if only:
        typer.echo(json.dumps(measured(*json.loads(only))))
        return
    runs = []
    for way, classes, examples in product(("at once", "stream"), CLASSES, EXAMPLES):
        for threads in THREADS if examples == EXAMPLES[-1] else THREADS[-1:]:
            arguments = json.dumps([examples, classes, threads, way])
            shown = in_own_process("benchmarks.speed.selection", "--only", arguments)
            runs.append(json.loads(shown.splitlines()[-1]))
            typer.echo(str(runs[-1]))
    settings = {"width": WIDTH, "keep": KEEP, "batch_size": BATCH}
    question = "What does herding cost at a million examples?"
    write(RESULTS / "selection.json", question, environment(), settings=settings, results=runs)


def section() -> str:
    """Return what RESULTS.md says of herding at scale."""
    record = read("selection.json")
    runs = of(record["results"], rule="herding")
    asked = [(250_000, 2), (500_000, 2), (1_000_000, 2), (1_000_000, 1)]
    rows = []
    for way, classes in kinds(runs, "way", "classes"):
        by_size = {
            (run["examples"], run["threads"]): run for run in of(runs, way=way, classes=classes)
        }
        cells = [f"{by_size[one]['seconds']:.1f}" for one in asked]
        peak = by_size[1_000_000, 2]["peak_bytes"] / 2**20
        rows.append([way, f"{classes:,}", *cells, f"{peak:,.0f}"])
    heads = [f"{count:,}, {threads} thread{'s' * (threads > 1)}" for count, threads in asked]
    text = TEXT.format(**record["settings"], cpu=record["cpu"], same=_same(runs))
    return text + "\n" + table(["rows come", "classes", *heads, "peak, MiB"], rows)


def _same(runs: list[Run]) -> str:
    settings, results = ("way", "classes", "examples"), ("way", "classes", "examples", "digest")
    return "yes" if len(kinds(runs, *settings)) == len(kinds(runs, *results)) else "NO"


if __name__ == "__main__":
    typer.run(main)
