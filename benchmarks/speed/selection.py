"""Herding and facility location at scale: seconds, linear in N, and the memory of a stream.

Rows of 64 coordinates in classes, a tenth kept: all at once (the core's function) and as a stream
of blocks, whose rows are computed batch by batch and never held together.

    python -m benchmarks.speed.selection
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

import sage_torch._core as _core
from benchmarks.record import RESULTS, environment, write
from benchmarks.speed.peak_memory import resident_peak, restarted_peak

WIDTH, KEEP, BATCH = 64, 0.1, 256
EXAMPLES, CLASSES, THREADS = (250_000, 500_000, 1_000_000), (1_000, 10), (1, 2)
RULES = ("herding", "facility_location")
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


def measured(rule: str, examples: int, classes: int, threads: int, way: str) -> dict[str, Any]:
    """One run in this process; seconds of the core alone."""
    torch.set_num_threads(threads)
    sizes = np.bincount(np.arange(examples) % classes)
    quotas = _core.class_quotas(sizes.tolist(), round(KEEP * examples))
    if way == "at once":
        parts = [np.concatenate(part) for part in zip(*batches(examples, classes), strict=True)]
        rows, margins, ids, _ = parts
        choose = {"herding": _core.herding, "facility_location": _core.facility_location}[rule]
        before, start = restarted_peak(), time.perf_counter()
        chosen = choose(rows, margins, ids, quotas, trim="negative")
        seconds = time.perf_counter() - start
    else:
        of_rule: Any = rule
        stream = _core.BlockStream(sizes, quotas, width=WIDTH, trim="negative", rule=of_rule)
        before, seconds = restarted_peak(), 0.0
        for batch in batches(examples, classes):
            start = time.perf_counter()
            stream.add(*batch)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        chosen, _ = stream.finish()
        seconds += time.perf_counter() - start
    assert len(chosen) == round(KEEP * examples)
    about = {"rule": rule, "examples": examples, "classes": classes, "threads": threads}
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
        rule, examples, classes, threads, way = json.loads(only)
        typer.echo(json.dumps(measured(rule, examples, classes, threads, way)))
        return
    runs = []
    for way in ("at once", "stream"):
        for classes in CLASSES:
            for examples in EXAMPLES:
                for threads in THREADS if examples == EXAMPLES[-1] else THREADS[-1:]:
                    for rule in RULES:
                        arguments = json.dumps([rule, examples, classes, threads, way])
                        asked = subprocess.run(
                            [sys.executable, __file__, "--only", arguments],
                            stdout=subprocess.PIPE,
                            text=True,
                            check=True,
                        )
                        runs.append(json.loads(asked.stdout.splitlines()[-1]))
                        typer.echo(str(runs[-1]))
    settings = {"width": WIDTH, "keep": KEEP, "batch_size": BATCH}
    question = "What do herding and facility location cost at a million examples?"
    record = {"question": question, "settings": settings, **environment(), "results": runs}
    write(RESULTS / "selection.json", record)


if __name__ == "__main__":
    typer.run(main)
