"""How fast are rows taken into a Frequent Directions sketch?

Side by side in one run, rounds interleaved, medians of the rounds:

    host       sage_torch, the kernel of `src/panels.rs` on the tensor's own memory
    torch      sage_torch, the path that CUDA uses, here on the CPU (on the GPU with --device cuda)
    gram       the same algorithm in plain torch: Gram of a 2l buffer, float64 eigh, rotation
    scipy      the same in SciPy: half of the Gram (ssyrk), the l + 1 eigenpairs that are needed
    svd        the textbook form: torch.linalg.svd of a 2l buffer
    numpy      the same through NumPy's SVD in float32
    public     what the public NumPy code of Liberty's group does: float64, one row at a time

Where our time goes is another script: `rates.py`.

    python -m benchmarks.speed.sketch
    MKL_ENABLE_INSTRUCTIONS=AVX2 python -m benchmarks.speed.sketch --only host --only gram \
        --out benchmarks/results/sketch_mkl_avx2.json
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.linalg
import torch
import typer
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.record import RESULTS, environment, spread, write
from sage_torch import FrequentDirections

Sizes = list[tuple[int, int]]
SIZES: Sizes = [(size, dim) for size in (64, 256) for dim in (8_192, 51_200, 500_000)]
# Timed rows in units of l: 12 l are eight shrinks of ours, twelve of the others (3 l where rows are
# long). A row of an SVD costs tens of times what a row of ours does: one shrink is enough.
TIMED = {"host": 12, "torch": 12, "gram": 12, "scipy": 12, "svd": 1, "numpy": 1, "public": 1}
# What takes minutes a shrink is left out of the longest cells.
LONGEST = {"public": 64 * 51_200, "numpy": 64 * 51_200}


class GramSketch:
    """A buffer of 2l rows; when it is full, the upper l rows take the shrunk sketch."""

    def __init__(self, sketch_size: int, dim: int, device: str) -> None:
        self.size = sketch_size
        self.buffer = torch.zeros(2 * sketch_size, dim, device=device)
        self.filled = 0

    def update(self, rows: Tensor) -> None:
        """Add rows (n, dim)."""
        start = 0
        while start < len(rows):
            count = min(len(rows) - start, 2 * self.size - self.filled)
            self.buffer[self.filled : self.filled + count] = rows[start : start + count]
            self.filled += count
            start += count
            if self.filled == 2 * self.size:
                self.buffer[: self.size] = self.shrunk()
                self.filled = self.size

    def shrunk(self) -> Tensor:
        """Return the sketch (l, dim) of the full buffer."""
        values, vectors = torch.linalg.eigh((self.buffer @ self.buffer.T).double())
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        kept = (values[: self.size] - values[self.size]).clamp_min(0)
        scale = (kept / values[: self.size].clamp_min(1e-300)).sqrt()
        return (vectors[:, : self.size] * scale).T.float() @ self.buffer


class SvdSketch(GramSketch):
    """The same with an SVD of the buffer itself."""

    def shrunk(self) -> Tensor:
        """Return the sketch (l, dim) of the full buffer."""
        _, values, right = torch.linalg.svd(self.buffer, full_matrices=False)
        kept = (values[: self.size] ** 2 - values[self.size] ** 2).clamp_min(0).sqrt()
        return kept[:, None] * right[: self.size]


class NumpySketch(GramSketch):
    """The same with NumPy's SVD."""

    def shrunk(self) -> Tensor:
        """Return the sketch (l, dim) of the full buffer."""
        _, values, right = np.linalg.svd(self.buffer.numpy(), full_matrices=False)
        kept = np.sqrt(np.maximum(values[: self.size] ** 2 - values[self.size] ** 2, 0))
        return torch.from_numpy(kept[:, None] * right[: self.size])


class ScipySketch(GramSketch):
    """The Gram form in SciPy: one triangle, and no eigenpair that is not needed."""

    def shrunk(self) -> Tensor:
        """Return the sketch (l, dim) of the full buffer."""
        rows = self.buffer.numpy()
        gram = scipy.linalg.blas.ssyrk(1.0, rows.T, trans=1, lower=1).astype(np.float64)
        wanted = (self.size - 1, 2 * self.size - 1)
        values, vectors = scipy.linalg.eigh(gram, subset_by_index=wanted, overwrite_a=True)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        kept = np.maximum(values[: self.size] - values[self.size], 0)
        scale = np.sqrt(kept / np.maximum(values[: self.size], 1e-300))
        return torch.from_numpy((vectors[:, : self.size] * scale).T.astype(np.float32) @ rows)


class PublicSketch:
    """One row at a time into a float64 buffer of 2l rows; the l-th singular value is subtracted."""

    def __init__(self, sketch_size: int, dim: int) -> None:
        self.size = sketch_size
        self.buffer = np.zeros((2 * sketch_size, dim))
        self.filled = 0

    def update(self, rows: Tensor) -> None:
        """Add rows (n, dim)."""
        for row in rows.numpy():
            if self.filled == 2 * self.size:
                _, values, right = np.linalg.svd(self.buffer, full_matrices=False)
                kept = np.sqrt(values[: self.size] ** 2 - values[self.size - 1] ** 2)
                self.buffer[: self.size] = kept[:, None] * right[: self.size]
                self.buffer[self.size :] = 0
                self.filled = self.size
            self.buffer[self.filled] = row
            self.filled += 1


def makers(sketch_size: int, dim: int, device: str) -> dict[str, Callable[[], Any]]:
    """Return a constructor for each contender."""
    ours = FrequentDirections
    contenders: dict[str, Callable[[], Any]] = {
        "torch": lambda: ours(sketch_size, dim, device=device, backend="torch"),
        "gram": lambda: GramSketch(sketch_size, dim, device),
        "svd": lambda: SvdSketch(sketch_size, dim, device),
    }
    if device == "cpu":
        contenders["host"] = lambda: ours(sketch_size, dim)
        contenders["scipy"] = lambda: ScipySketch(sketch_size, dim, device)
        contenders["numpy"] = lambda: NumpySketch(sketch_size, dim, device)
        contenders["public"] = lambda: PublicSketch(sketch_size, dim)
    return {
        name: make
        for name, make in contenders.items()
        if sketch_size * dim <= LONGEST.get(name, sketch_size * dim)
    }


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
    path = out or RESULTS / f"sketch_{device}.json"
    write(
        path,
        {
            "question": "How fast are rows taken into a Frequent Directions sketch?",
            "settings": {
                "device": device,
                "rounds": rounds,
                "seed": seed,
                "dtype": "float32",
                "mkl_instructions": os.environ.get("MKL_ENABLE_INSTRUCTIONS", "all"),
            },
            **where,
            "results": cells,
        },
    )


if __name__ == "__main__":
    typer.run(main)
