"""Where does the time of the sketch go, and how near is it to a bare matrix product?

Runs `rates.rs` at every size of `sketch.py`: our rows in turn with faer's matrix product, the
eigenproblem with faer's own solver, `project` with one product of its size, and other numbers of
rows between shrinks. One thread, CPU.

    python -m benchmarks.speed.rates
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.record import RESULTS, environment, write
from benchmarks.speed.sketch import SIZES
from sage_torch import FrequentDirections

SEED = 7  # of the rows in `rates.rs`
PRODUCT = 2 * 1024**3  # operations of the product that `rates.rs` times


def rates(sketch_size: int, dim: int, rounds: int) -> dict[str, Any]:
    """Return what `rates.rs` measures."""
    arguments = ["--example", "rates", "--", str(sketch_size), str(dim), str(rounds)]
    asked = subprocess.run(
        ["cargo", "run", "--release", "--quiet", "--no-default-features", *arguments],
        cwd=RESULTS.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(asked.stdout)
    return measured


def main(
    rounds: Annotated[int, typer.Option(help="rounds; more where rows are short")] = 5,
    out: Annotated[Path | None, typer.Option(help="result file")] = None,
) -> None:
    """Measure every size and write the numbers down."""
    where = environment()
    cells = []
    for sketch_size, dim in SIZES:
        turns = max(rounds, 500_000 // dim)
        measured = rates(sketch_size, dim, turns)
        block = FrequentDirections(sketch_size, 1).block_rows
        operations = (4 * sketch_size + block + 2 * sketch_size**2 / block) * dim
        ours = measured["seconds_a_row_by_block"]["1.5"]
        beside = measured["update_over_gemm"]  # the most time is the least share
        cell: dict[str, Any] = {
            "sketch_size": sketch_size,
            "dim": dim,
            "rounds": turns,
            "operations_a_row": operations,
            "gflops": operations / ours / 1e9,
            "gemm_gflops": PRODUCT / measured["gemm_seconds"] / 1e9,
            "share_of_gemm": {
                "median": operations / PRODUCT / beside["median"],
                "min": operations / PRODUCT / beside["max"],
                "max": operations / PRODUCT / beside["min"],
            },
            "eigenproblem_share": measured["eigenproblem_seconds"] / (block * ours),
            **measured,
        }
        cells.append(cell)
        share = cell["share_of_gemm"]["median"]
        typer.echo(f"l={sketch_size:<4} d={dim:<8} {share:.0%} of a product's rate")
    write(
        out or RESULTS / "rates_cpu.json",
        {
            "question": "Where does the time of the sketch go?",
            "settings": {"rounds": rounds, "seed": SEED, "dtype": "float32"},
            **where,
            "threads": 1,
            "results": cells,
        },
    )


if __name__ == "__main__":
    typer.run(main)
