"""A count sketch between a gradient computer and the sketch, which shortens long gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.computer import GradientComputer, rows_of
from sage_torch.gradients.count_sketch import DEFAULT_WIDTH, CountSketch
from sage_torch.gradients.loss import rows_counted_from

__all__ = ["CompressedGradients", "CountSketch", "compressed"]


class CompressedGradients:
    """A gradient computer followed by a count sketch; rows of length D exist for one part only.

    Args:
        gradients: The computer of the long rows.
        sketch: The map from long rows to short ones.
        memory_budget: Bytes for the long rows held at once.
    """

    def __init__(
        self, gradients: GradientComputer, sketch: CountSketch, memory_budget: int
    ) -> None:
        self.gradients = gradients
        self.dim = sketch.out_dim
        self.covers_whole_network = bool(getattr(gradients, "covers_whole_network", False))
        self._sketch, self._memory_budget = sketch, memory_budget

    @property
    def handling(self) -> dict[str, str] | None:
        """How each parameter is handled; None if the computer has no such attribute."""
        return getattr(self.gradients, "handling", None)

    def __call__(self, batch: Batch) -> Tensor:
        """Return compressed gradients (n, dim) float32."""
        # Two copies of the long rows: the result and the parts that it was concatenated from.
        at_once = max(1, self._memory_budget // (8 * self._sketch.dim))
        n = batches.length(batch)
        parts = []
        for start in range(0, n, at_once):
            part = batches.take(batch, start, min(n, start + at_once))
            with rows_counted_from(start):
                parts.append(self._sketch(rows_of(self.gradients, part)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def describe(self) -> str:
        """Return one line that describes the computation."""
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
    """Return the computer, followed by a count sketch if its rows are longer than `compress`.

    Args:
        gradients: Any gradient computer.
        compress: `"auto"` (8,192), a number of coordinates, or None for no compression.
        first_batch: Reads the first batch; called only if the computer does not know D yet.
        seed: Seed of the map.
        memory_budget: Bytes for the long rows held at once.
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
