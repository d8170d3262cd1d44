"""How fast are rows taken into a Frequent Directions sketch?

Side by side in one run, rounds interleaved, medians of the rounds:

    host       sage_torch, the kernel of `src/products/panels.rs` on the tensor's own memory
    torch      sage_torch, the path that CUDA uses, here on the CPU (on the GPU with --device cuda)
    gram       the same algorithm in plain torch: Gram of a 2l buffer, float64 eigh, rotation
    scipy      the same in SciPy: half of the Gram (ssyrk), the l + 1 eigenpairs that are needed
    svd        the textbook form: torch.linalg.svd of a 2l buffer
    numpy      the same through NumPy's SVD in float32
    public     what the public NumPy code of Liberty's group does: float64, one row at a time

Where our time goes is another script: `rates.py`.

    python -m benchmarks.speed.sketch
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.record import RESULTS, environment, read, spread, table, write
from benchmarks.speed.sketches import makers
from sage_torch import FrequentDirections

Sizes = list[tuple[int, int]]
SIZES: Sizes = [(size, dim) for size in (64, 256) for dim in (8_192, 51_200, 500_000)]
# Timed rows in units of l: 12 l are eight shrinks of ours, twelve of the others (3 l where rows are
# long). A row of an SVD costs tens of times what a row of ours does: one shrink is enough.
TIMED = {"host": 12, "torch": 12, "gram": 12, "scipy": 12, "svd": 1, "numpy": 1, "public": 1}
TEXT = """\
## Sketch: rows per second

`python -m benchmarks.speed.sketch`; {cpu}, threads: {threads}; float32 rows, medians of {rounds}
interleaved rounds (3 at d = 500,000). `host` and `torch` are ours. `gram` is the same algorithm in
plain torch. `scipy` is the same algorithm in SciPy: it computes half of the Gram matrix, and only
the eigenpairs that are needed. `svd` and `numpy` decompose the 2l buffer in float32. `public` does
what the public NumPy code does: float64, row by row. A ratio below 1 means that the other is
faster.
"""


def seconds_a_row(make: Callable[[], Any], rows: Tensor, sketch_size: int, units: int) -> float:
    """Time `units * l` rows, given in batches of at most 3 l, after 6 l rows that warm up."""
    sketch = make()
    sketch.update(rows[: 6 * sketch_size] if units > 1 else rows[: 2 * sketch_size])
    _wait(rows)
    start = time.perf_counter()
    left = units * sketch_size
    while left > 0:
        batch = min(left, 3 * sketch_size)
        sketch.update(rows[:batch])
        left -= batch
    _wait(rows)
    return (time.perf_counter() - start) / (units * sketch_size)


def gemm_rate(dim: int, sketch_size: int, device: str) -> float:
    """Return what one float32 matrix product of these sizes reaches in torch, in GFLOP/s."""
    left = torch.randn(2 * sketch_size, dim, device=device)
    right = torch.randn(sketch_size, dim, device=device)
    timings = []
    for _ in range(7):
        _wait(left)
        start = time.perf_counter()
        left @ right.T
        _wait(left)
        timings.append(time.perf_counter() - start)
    return 4 * sketch_size**2 * dim / sorted(timings)[3] / 1e9


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int, typer.Option(help="torch threads (CPU)")] = 1,
    rounds: Annotated[int, typer.Option(help="interleaved rounds")] = 5,
    seed: Annotated[int, typer.Option(help="seed of the rows")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="a contender; all unless told")] = None,
    out: Annotated[Path | None, typer.Option(help="result file")] = None,
) -> None:
    """Measure every contender at every size and write the numbers down."""
    unknown = sorted(set(only or ()) - set(TIMED))
    if unknown:
        raise typer.BadParameter(f"expected some of {', '.join(TIMED)}, got {', '.join(unknown)}")
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")  # NumPy's
    where = environment()
    cells = []
    for sketch_size, dim in SIZES:
        generator = torch.Generator().manual_seed(seed)
        count = 6 * sketch_size
        decay = torch.linspace(0, -3, count)[:, None].exp()
        rows = (torch.randn(count, dim, generator=generator) * decay).to(device)
        contenders = makers(sketch_size, dim, device)
        contenders = {name: make for name, make in contenders.items() if not only or name in only}
        timings: dict[str, list[float]] = {name: [] for name in contenders}
        of_cell = rounds if dim < 500_000 else min(rounds, 3)
        for _ in range(of_cell):
            for name, make in contenders.items():
                units = TIMED[name] if dim < 500_000 else min(TIMED[name], 3)
                timings[name].append(seconds_a_row(make, rows, sketch_size, units))
        block = FrequentDirections(sketch_size, 1).block_rows
        operations = (4 * sketch_size + block + 2 * sketch_size**2 / block) * dim
        cell: dict[str, Any] = {
            "sketch_size": sketch_size,
            "dim": dim,
            "seconds_a_row": {name: spread(values) for name, values in timings.items()},
            "rows_a_second": {
                name: 1 / sorted(values)[of_cell // 2] for name, values in timings.items()
            },
            "torch_gemm_gflops": gemm_rate(dim, sketch_size, device),
        }
        ours = cell["rows_a_second"].get("host", cell["rows_a_second"].get("torch"))
        if ours is not None:
            cell["our_gflops"] = operations * ours / 1e9
        cells.append(cell)
        typer.echo(
            f"l={sketch_size:<4} d={dim:<8}"
            + "  ".join(f"{name} {rate:,.0f}/s" for name, rate in cell["rows_a_second"].items())
        )
    write(
        out or RESULTS / f"sketch_{device}.json",
        "How fast are rows taken into a Frequent Directions sketch?",
        where,
        settings={
            "device": device,
            "rounds": rounds,
            "seed": seed,
            "dtype": "float32",
            "mkl_instructions": os.environ.get("MKL_ENABLE_INSTRUCTIONS", "all"),
        },
        results=cells,
    )


def section() -> str:
    """Return what RESULTS.md says of the speed of the sketch."""
    record = read("sketch_cpu.json")
    names = list(TIMED)
    rows = []
    for cell in record["results"]:
        rates = cell["rows_a_second"]
        shown = [
            f"{rates[name]:,.{0 if rates[name] >= 10 else 1}f}" if name in rates else "-"
            for name in names
        ]
        ratios = [
            f"{rates['host'] / rates[name]:.{0 if name == 'svd' else 2}f}"
            for name in ("gram", "scipy", "svd")
        ]
        rows.append([str(cell["sketch_size"]), f"{cell['dim']:,}", *shown, *ratios])
    heads = ["l", "d", *names, "host / gram", "host / scipy", "host / svd"]
    text = TEXT.format(rounds=record["settings"]["rounds"], **record)
    return text + "\n" + table(heads, rows)


def block() -> str:
    """Return how many times as fast as others ours is, for the pages that ask for it."""
    cells = read("sketch_cpu.json")["results"]
    others = {
        "gram": "the Gram form in plain torch",
        "scipy": "the same in SciPy, half the matrix",
        "svd": "`torch.linalg.svd` of a 2l buffer",
        "public": "the public NumPy code",
    }
    rates = [cell["rows_a_second"] for cell in cells]
    rows = []
    for name, shown in others.items():
        digits = 1 if name in ("gram", "scipy") else 0
        ratios = [f"{of['host'] / of[name]:.{digits}f}" if name in of else "-" for of in rates]
        rows.append([shown, *ratios])
    shares = [cell["share_of_gemm"]["median"] for cell in read("rates_cpu.json")["results"]]
    rows.append(["*share of faer's matrix product rate*", *(f"{share:.0%}" for share in shares)])
    names = [f"{cell['sketch_size']}, {cell['dim']:,}" for cell in cells]
    return table(["times as fast as, at l, d =", *names], rows)


if __name__ == "__main__":
    typer.run(main)
