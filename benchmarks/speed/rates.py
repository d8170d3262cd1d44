"""Where does the time of the sketch go, and how near is it to a bare matrix product?

Runs `rates.rs` at every size of `sketch.py`: our rows in turn with faer's matrix product, `project`
in turn with one product of its size, the eigenproblem, and other numbers of rows between shrinks.
One thread, CPU.

    python -m benchmarks.speed.rates
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.record import PROJECT, RESULTS, Run, environment, read, table, write
from benchmarks.speed.sketch import SIZES
from sage_torch import FrequentDirections

SEED = 7  # of the rows in `rates.rs`
PRODUCT = 2 * 1024**3  # operations of the product that `rates.rs` times
TEXT = """\
## Sketch: where the time goes

`python -m benchmarks.speed.rates`; {cpu}, one thread. Everything is timed in turns; figures are
medians of 3 to 61 turns and of the ratios of the turns (in brackets least - most; above 100 % is
noise). *GFLOP/s* counts `(4l + b + 2l²/b) d` operations per row; the time includes all else, such
as norms and the eigenproblem. *GEMM* is faer's float32 matrix product of 1,024 x 1,024, and
*shaped* its product of (b, d) with (d, l). *Eigenproblem* is its share of the time of an update.
*Project* is the time of `project` over that of one such product of 256 rows. *b* is the number of
rows between two shrinks; 1.5 l ships.
"""


def rates(sketch_size: int, dim: int, rounds: int) -> dict[str, Any]:
    """Return what `rates.rs` measures."""
    arguments = ["--example", "rates", "--", str(sketch_size), str(dim), str(rounds)]
    asked = subprocess.run(
        ["cargo", "run", "--release", "--quiet", "--no-default-features", *arguments],
        cwd=PROJECT,
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
        "Where does the time of the sketch go?",
        where | {"threads": 1},
        settings={"rounds": rounds, "seed": SEED, "dtype": "float32"},
        results=cells,
    )


def section() -> str:
    """Return what RESULTS.md says of where the time of the sketch goes."""
    record = read("rates_cpu.json")
    cells = record["results"]
    heads = ["l", "d", "GFLOP/s", "GEMM", "shaped", "host / GEMM", "eigenproblem"]
    heads += ["project / GEMM", *(f"b = {ratio} l" for ratio in cells[0]["seconds_a_row_by_block"])]
    return "\n".join([TEXT.format(**record), table(heads, map(_row, cells))])


def _row(cell: Run) -> list[str]:
    of_blocks = cell["seconds_a_row_by_block"]
    return [
        str(cell["sketch_size"]),
        f"{cell['dim']:,}",
        f"{cell['gflops']:.0f}",
        f"{cell['gemm_gflops']:.0f}",
        f"{cell['shaped_gflops']:.0f}",
        "{median:.0%} ({min:.0%} - {max:.0%})".format(**cell["share_of_gemm"]),
        f"{cell['eigenproblem_share']:.0%}",
        f"{cell['project_over_gemm']['median']:.2f}",
        *(f"{seconds / min(of_blocks.values()):.2f}" for seconds in of_blocks.values()),
    ]


if __name__ == "__main__":
    typer.run(main)
