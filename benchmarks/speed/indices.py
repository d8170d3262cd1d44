"""How fast are indices drawn out of so many that nobody could hold them?

    permutation  the first draws of a seeded order of N, computed place by place
    reservoir    weighted draws without replacement from a stream of N weights, in blocks

Bytes are the memory that this took at its highest (Linux), over what was held before.

    python -m benchmarks.speed.indices
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import sage_torch._core as _core
from benchmarks.record import RESULTS, environment, spread, write

BLOCK = 2**20
DRAWS = (1_000, 1_000_000)
TOTALS = (10**8, 10**9)


def main(
    rounds: Annotated[int, typer.Option(help="Timings of each.")] = 3,
    largest: Annotated[int, typer.Option(help="Streams are no longer than that.")] = 10**9,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "indices.json",
    only: Annotated[str, typer.Option(help="One of them: name, draws, total.")] = "",
) -> None:
    """Measure and write the numbers down."""
    if only:
        name, draws, total = only.split()
        typer.echo(" ".join(map(str, measured(name, int(draws), int(total)))))
        return
    results: list[dict[str, Any]] = []
    for name in ("permutation", "reservoir"):
        for total in (total for total in TOTALS if total <= largest):
            for draws in DRAWS:
                found = [in_process(name, draws, total) for _ in range(rounds)]
                results.append(
                    {
                        "what": name,
                        "total": total,
                        "draws": draws,
                        "seconds": spread([seconds for seconds, _ in found]),
                        "bytes": max(size for _, size in found),
                    }
                )
                typer.echo(results[-1])
    write(out, {"question": __doc__, "block": BLOCK, **environment(), "results": results})


def in_process(name: str, draws: int, total: int) -> tuple[float, int]:
    """Return seconds and bytes of one measurement, in a process of its own."""
    command = [sys.executable, __file__, "--only", f"{name} {draws} {total}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, size = ended.stdout.split()
    return float(seconds), int(size)


def measured(name: str, draws: int, total: int) -> tuple[float, int]:
    """Return seconds and bytes of one measurement."""
    weights = np.linspace(0.0, 1.0, BLOCK, dtype=np.float32)
    Path("/proc/self/clear_refs").write_text("5")  # the highest is counted from here on
    before = highest()
    start = time.perf_counter()
    if name == "permutation":
        found = _core.Permutation(total, 1).take(0, draws)
    else:
        reservoir = _core.WeightedReservoir(draws, 1)
        for first in range(0, total, BLOCK):
            reservoir.add(weights[: min(BLOCK, total - first)], first)
        found = reservoir.finish()
    seconds = time.perf_counter() - start
    assert len(found) == draws
    return seconds, highest() - before


def highest() -> int:
    """Return the most memory that this process has had resident, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    typer.run(main)
