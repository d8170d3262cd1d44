"""How fast are indices drawn out of so many that nobody could hold them?

The first draws of a seeded order of N, computed place by place. Bytes are the memory that this took
at its highest (Linux), over what was held before.

    python -m benchmarks.speed.indices
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

import sage_torch._core as _core
from benchmarks.record import RESULTS, environment, in_own_process, read, spread, table, write
from benchmarks.speed.peak_memory import resident_peak, restarted_peak

DRAWS = (1_000, 1_000_000)
TOTALS = (10**8, 10**9)
TEXT = """\
## Indices: draws from a billion

`python -m benchmarks.speed.indices`; {cpu}, one thread, medians of {runs}. A row gives the cost of
the first draws of a seeded order of N. Memory is the most that the draw took, over what was held
before. (The file also has the figures of a weighted reservoir, which is no longer in the product.)
"""


def main(
    rounds: Annotated[int, typer.Option(help="Timings of each.")] = 3,
    largest: Annotated[int, typer.Option(help="Orders are no longer than that.")] = 10**9,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "indices.json",
    only: Annotated[str, typer.Option(help="One of them: draws, total.", hidden=True)] = "",
) -> None:
    """Measure and write the numbers down."""
    if only:
        typer.echo(" ".join(map(str, measured(*map(int, only.split())))))
        return
    results: list[dict[str, Any]] = []
    for total in (total for total in TOTALS if total <= largest):
        for draws in DRAWS:
            arguments = ("benchmarks.speed.indices", "--only", f"{draws} {total}")
            found = [in_own_process(*arguments).split() for _ in range(rounds)]
            results.append(
                {
                    "what": "permutation",
                    "total": total,
                    "draws": draws,
                    "seconds": spread([float(seconds) for seconds, _ in found]),
                    "bytes": max(int(size) for _, size in found),
                }
            )
            typer.echo(results[-1])
    write(out, "How fast are indices drawn out of a billion?", environment(), results=results)


def measured(draws: int, total: int) -> tuple[float, int]:
    """Return seconds and bytes of one measurement."""
    before, start = restarted_peak(), time.perf_counter()
    found = _core.Permutation(total, 1).take(0, draws)
    seconds = time.perf_counter() - start
    assert len(found) == draws
    return seconds, resident_peak() - before


def section() -> str:
    """Return what RESULTS.md says of drawing indices."""
    record = read("indices.json")
    results = [one for one in record["results"] if one["what"] == "permutation"]
    rows = [
        [
            f"{one['total']:,}",
            f"{one['draws']:,}",
            f"{one['seconds']['median']:.3g}",
            f"{one['bytes'] / 2**20:.1f}",
        ]
        for one in results
    ]
    text = TEXT.format(cpu=record["cpu"], runs=results[0]["seconds"]["runs"])
    return text + "\n" + table(["N", "drawn", "seconds", "MiB"], rows)


if __name__ == "__main__":
    typer.run(main)
