"""The count sketch: a seeded map from long gradients to short ones that keeps inner products."""

from __future__ import annotations

import torch
from torch import Tensor

import sage_torch._core as _core
from sage_torch.checks import whole_number

__all__ = ["DEFAULT_WIDTH", "CountSketch"]

DEFAULT_WIDTH = 8_192
# Runs of coordinates that the torch path rotates at once, to bound its temporaries.
_RUNS_AT_ONCE = 64


class CountSketch:
    """A seeded linear map to `out_dim` coordinates that keeps inner products on average.

    `<C x, C y>` is `<x, y>` in expectation over seeds, with a variance of at most
    `(|x|^2 |y|^2 + <x, y>^2) / out_dim`. Each run of `out_dim` coordinates is rotated by a seeded
    shift, each coordinate gets a seeded sign, and the runs are added. Nothing is added atomically,
    so that repeated calls give the same result. The map is the same on every device.

    Args:
        dim: Coordinates D of a gradient, at least 1.
        out_dim: Coordinates d of the result, at least 1.
        seed: A seed gives the same map on every device and in every process.

    Raises:
        TypeError: A dimension or the seed is not a whole number.
        ValueError: A dimension is below 1, or the seed below 0.

    Cost:
        O(n D) time; on CUDA also a table of D signs (1 byte per sign).

    Reference:
        Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2002.

    Example:
        >>> import torch
        >>> from sage_torch.gradients.compressed import CountSketch
        >>> CountSketch(10_000, 64)(torch.randn(5, 10_000)).shape
        torch.Size([5, 64])
    """

    def __init__(self, dim: int, out_dim: int = DEFAULT_WIDTH, seed: int = 0) -> None:
        self.dim = whole_number("dim", dim, least=1)
        self.out_dim = whole_number("out_dim", out_dim, least=1)
        self.seed = whole_number("seed", seed)
        self._map = _core.CountSketch(self.dim, self.out_dim, self.seed)
        self._tables: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Compress rows.

        Args:
            rows: Tensor (n, dim) float32, float64, bfloat16 or float16.

        Returns:
            Tensor (n, out_dim) float32 on the same device, without a graph.

        Raises:
            ValueError: The rows have another shape.
            TypeError: The rows are not a dense floating-point tensor.
        """
        if not isinstance(rows, Tensor):
            raise TypeError(f"expected rows as a torch.Tensor, got {type(rows).__name__}")
        if rows.layout is not torch.strided or not rows.is_floating_point():
            raise TypeError(
                "expected dense float32, float64, bfloat16 or float16 rows, got "
                f"{rows.dtype} ({rows.layout})"
            )
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"expected gradients of shape (n, {self.dim}), got {tuple(rows.shape)}: the count "
                f"sketch was built for dim={self.dim}; use one gradient computer for both passes"
            )
        rows = rows.detach().to(torch.float32).resolve_neg().contiguous()
        if rows.device.type == "cpu":
            out = rows.new_empty(len(rows), self.out_dim)
            self._map.apply(rows, out)
            return out
        return self._on_device(rows)

    def _on_device(self, rows: Tensor) -> Tensor:
        """Apply the same map with torch operations, on any device (tests run it on the CPU)."""
        if self._tables is None or self._tables[0].device != rows.device:
            self._tables = (
                torch.from_numpy(self._map.signs(0, self.dim)).to(rows.device),
                torch.from_numpy(self._map.shifts()).to(rows.device),
            )
        signs, shifts = self._tables
        out = rows.new_zeros(len(rows), self.out_dim)
        buckets = torch.arange(self.out_dim, device=rows.device)
        whole = self.dim // self.out_dim
        for start in range(0, whole, _RUNS_AT_ONCE):
            runs = min(_RUNS_AT_ONCE, whole - start)
            columns = slice(start * self.out_dim, (start + runs) * self.out_dim)
            signed = (rows[:, columns] * signs[columns]).view(len(rows), runs, self.out_dim)
            # Bucket j of a run receives the coordinate that the shift of the run moves there.
            source = (buckets - shifts[start : start + runs, None]) % self.out_dim
            out += signed.gather(2, source.expand(len(rows), -1, -1)).sum(1)
        if rest := self.dim % self.out_dim:
            signed = rows[:, -rest:] * signs[-rest:]
            out[:, (buckets[:rest] + shifts[-1]) % self.out_dim] += signed
        return out
