"""The other ways to a Frequent Directions sketch that `sketch.py` compares ours with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from sage_torch import FrequentDirections

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
