"""How fast are rows taken into a Frequent Directions sketch?

Side by side in one run, rounds interleaved, medians of the rounds:

    host       sage_torch, faer on the tensor's own memory
    torch      sage_torch, the path that CUDA uses, here on the CPU (on the GPU with --device cuda)
    gram       the same algorithm in plain torch: Gram of a 2l buffer, float64 eigh, rotation
    svd        the textbook form: torch.linalg.svd of a 2l buffer
    numpy      the same through NumPy's SVD in float32 (its own threads held to as many)

    python benchmarks/sketch.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from record import RESULTS, environment, spread, write
from threadpoolctl import threadpool_limits
from torch import Tensor

from sage_torch import FrequentDirections

Sizes = list[tuple[int, int]]
SIZES: Sizes = [(64, 8_192), (64, 51_200), (256, 8_192)]
# Timed rows in units of l: 3 l are two shrinks of ours, three of the others. A row of an SVD costs
# tens of times what a row of ours does, so one shrink is enough to time it.
TIMED = {"host": 12, "torch": 12, "gram": 12, "svd": 1, "numpy": 1}


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
        contenders["numpy"] = lambda: NumpySketch(sketch_size, dim, device)
    return contenders


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
    out: Annotated[Path | None, typer.Option(help="result file")] = None,
) -> None:
    """Measure every contender at every size and write the numbers down."""
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
        timings: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, make in contenders.items():
                timings[name].append(seconds_a_row(make, rows, sketch_size, TIMED[name]))
        ours = sorted(timings["host" if device == "cpu" else "torch"])[rounds // 2]
        cell = {
            "sketch_size": sketch_size,
            "dim": dim,
            "seconds_a_row": {name: spread(values) for name, values in timings.items()},
            "rows_a_second": {
                name: 1 / sorted(values)[rounds // 2] for name, values in timings.items()
            },
            "torch_gemm_gflops": gemm_rate(dim, sketch_size, device),
            # (4l + b + 2l^2/b) d multiply-adds a row at b = 1.5 l.
            "our_gflops": 2 * 6.833 * sketch_size * dim / ours / 1e9,
        }
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
            "settings": {"device": device, "rounds": rounds, "seed": seed, "dtype": "float32"},
            **where,
            "results": cells,
        },
    )


if __name__ == "__main__":
    typer.run(main)
