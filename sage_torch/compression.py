"""From long gradients to short ones: the seeded count sketch between gradients and sketch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sage_torch import _core
from sage_torch._core import SageError
from sage_torch.gradients import GradientComputer, batches, rows_of
from sage_torch.gradients.batches import Batch

DEFAULT_WIDTH = 8_192
# Runs of coordinates that the torch path rotates at once: bounds its temporaries.
_RUNS_AT_ONCE = 64


class CountSketch:
    """A seeded linear map to `out_dim` coordinates that keeps inner products on average.

    `<C x, C y>` is `<x, y>` in expectation over seeds, with a variance of at most
    `(|x|^2 |y|^2 + <x, y>^2) / out_dim`. Each run of `out_dim` coordinates is rotated by a seeded
    shift, each coordinate gets a seeded sign, and the runs are added: no atomics, so the result is
    the same on every run, and the same map on every device.

    Args:
        dim: Coordinates D of a gradient, at least 1.
        out_dim: Coordinates d of the result, at least 1.
        seed: The same seed names the same map on every device and in every process.

    Raises:
        ValueError: A dimension is below 1.

    Cost:
        O(n D) time; on CUDA a table of D signs (1 byte each).

    Reference:
        Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2002.

    Example:
        >>> import torch
        >>> from sage_torch.compression import CountSketch
        >>> CountSketch(10_000, 64)(torch.randn(5, 10_000)).shape
        torch.Size([5, 64])
    """

    def __init__(self, dim: int, out_dim: int = DEFAULT_WIDTH, seed: int = 0) -> None:
        if dim < 1 or out_dim < 1:
            raise ValueError(
                f"expected dim and out_dim of at least 1, got dim={dim}, out_dim={out_dim}"
            )
        self.dim, self.out_dim, self.seed = dim, out_dim, seed
        self._map = _core.CountSketch(dim, out_dim, seed)
        self._tables: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Compress rows.

        Args:
            rows: Tensor (n, dim) float32, float64, bfloat16 or float16.

        Returns:
            Tensor (n, out_dim) float32 on the same device, without a graph.

        Raises:
            ValueError: The rows have another shape.
            TypeError: Not a dense floating tensor.
        """
        if rows.layout is not torch.strided or not rows.is_floating_point():
            raise TypeError(
                "expected dense float32, float64, bfloat16 or float16 rows, got "
                f"{rows.dtype} ({rows.layout})"
            )
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"expected gradients of shape (n, {self.dim}), got {tuple(rows.shape)}: the count "
                "sketch was built for that length; use one gradient computer for both passes"
            )
        rows = rows.detach().to(torch.float32).resolve_neg().contiguous()
        if rows.device.type == "cpu":
            out = rows.new_empty(len(rows), self.out_dim)
            self._map.apply(rows, out)
            return out
        return self._on_device(rows)

    def _on_device(self, rows: Tensor) -> Tensor:
        """Apply the same map with torch operations, whatever the device (tested on the CPU)."""
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
            # Bucket j of a run holds the coordinate that its shift carries there.
            source = (buckets - shifts[start : start + runs, None]) % self.out_dim
            out += signed.gather(2, source.expand(len(rows), -1, -1)).sum(1)
        if rest := self.dim % self.out_dim:
            signed = rows[:, -rest:] * signs[-rest:]
            out[:, (buckets[:rest] + shifts[-1]) % self.out_dim] += signed
        return out


class CompressedGradients:
    """A gradient computer followed by a count sketch; rows of length D live only in parts.

    Args:
        gradients: The computer of the long rows.
        sketch: The map from its rows to short ones.
        memory_budget: Bytes for the long rows held at once.
    """

    def __init__(
        self, gradients: GradientComputer, sketch: CountSketch, memory_budget: int
    ) -> None:
        self.gradients = gradients
        self.dim = sketch.out_dim
        self.covers_whole_network = bool(getattr(gradients, "covers_whole_network", False))
        self._sketch, self._memory_budget = sketch, memory_budget

    def __call__(self, batch: Batch) -> Tensor:
        """Return compressed gradients (n, dim) float32."""
        # Two copies of the long rows: the computer's own and the concatenation it came from.
        at_once = max(1, self._memory_budget // (8 * self._sketch.dim))
        n = batches.length(batch)
        parts = []
        for start in range(0, n, at_once):
            part = batches.take(batch, start, min(n, start + at_once))
            try:
                parts.append(self._sketch(rows_of(self.gradients, part)))
            except (SageError, ValueError) as error:
                if hasattr(error, "row"):
                    error.row += start  # its place in the whole batch
                raise
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def describe(self) -> str:
        """Say in one line what is computed."""
        inner = getattr(self.gradients, "describe", lambda: repr(self.gradients))()
        return f"{inner}; count sketch to {self.dim:,}"


def compressed(
    gradients: GradientComputer,
    compress: str | int | None,
    first_batch: Callable[[], Batch],
    *,
    seed: int,
    memory_budget: int,
) -> GradientComputer:
    """Return the computer with a count sketch behind it where its rows are longer than asked for.

    Args:
        gradients: Any gradient computer.
        compress: `"auto"` (8,192), a number of coordinates, or None for no compression.
        first_batch: Reads the first batch; called where the computer does not know D yet.
        seed: Seed of the map.
        memory_budget: Bytes for the long rows held at once.

    Returns:
        `gradients` itself when its rows are short enough.
    """
    if compress is None:
        return gradients
    width = DEFAULT_WIDTH if compress == "auto" else int(compress)
    try:
        dim = gradients.dim
    except (AttributeError, RuntimeError):
        dim = rows_of(gradients, batches.take(first_batch(), 0, 1)).shape[1]
    if dim <= width:
        return gradients
    return CompressedGradients(gradients, CountSketch(dim, width, seed), memory_budget)
