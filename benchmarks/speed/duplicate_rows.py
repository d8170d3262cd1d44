"""How long does it take to find near duplicates among a million rows, and how much memory?

Random rows without classes, a hundredth of which are copies of others with noise, in a process of
its own. Classes are looked at one by one, so they would only make it easier.

    python -m benchmarks.speed.duplicate_rows
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.record import RESULTS, environment, in_own_process, read, write
from benchmarks.speed.peak_memory import resident_peak
from sage_torch.selection.duplicates import near_duplicates

WIDTH, COPIED, NOISE, THREADS = 64, 0.01, 0.2, 2
TEXT = """\
## Near duplicates: a million rows

`python -m benchmarks.speed.duplicate_rows`: of {rows:,} random rows of {width} numbers in float16,
without classes, {copies:,} are copies of others with noise. {recall:.1%} of them are found with
precision {precision:.3f}, in {seconds:.0f} s on {threads} threads. At its highest the process held
{peak:.2f} GiB, rows and imports included ({cpu}).
"""


def main(
    rows: Annotated[int, typer.Option(help="How many.")] = 1_000_000,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "duplicates_rows.json",
    only: Annotated[bool, typer.Option("--only", help="In this process.", hidden=True)] = False,
) -> None:
    """Measure and write the numbers down."""
    if only:
        typer.echo(json.dumps(measured(rows)))
        return
    where = environment("faiss-cpu") | {"threads": THREADS}
    variables = {"OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}
    arguments = ("benchmarks.speed.duplicate_rows", "--only", "--rows", str(rows))
    found = json.loads(in_own_process(*arguments, variables=variables).splitlines()[-1])
    typer.echo(found)
    write(out, "How fast are near duplicates found among so many rows?", where, results=found)


def measured(total: int) -> dict[str, Any]:
    """Return seconds, the peak in bytes, and whether copies are found."""
    random, copies = np.random.default_rng(0), round(COPIED * total)
    rows = random.standard_normal((total, WIDTH), np.float32).astype(np.float16)
    noise = NOISE * random.standard_normal((copies, WIDTH), np.float32)
    rows[total - copies :] = rows[:copies] + noise
    begin = time.perf_counter()
    found = near_duplicates(rows)
    seconds = time.perf_counter() - begin
    is_source = found[total - copies :] == np.arange(copies)
    return {
        "rows": total,
        "copies": copies,
        "recall": float(is_source.mean()),
        "precision": float(is_source.sum() / max(1, (found >= 0).sum())),
        "seconds": seconds,
        "peak": resident_peak(),
    }


def section() -> str:
    """Return what RESULTS.md says of it."""
    record = read("duplicates_rows.json")
    about = record["results"] | {"peak": record["results"]["peak"] / 2**30, "width": WIDTH}
    return TEXT.format(**about, threads=record["threads"], cpu=record["cpu"])


if __name__ == "__main__":
    typer.run(main)
