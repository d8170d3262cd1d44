"""A count sketch between a gradient computer and the sketch, which shortens long gradients."""

from __future__ import annotations

import torch
from torch import Tensor

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.computer import GradientComputer, rows_of
from sage_torch.gradients.count_sketch import DEFAULT_WIDTH, CountSketch
from sage_torch.gradients.last_layer import LastLayerGradients
from sage_torch.gradients.loss import rows_counted_from

__all__ = ["CompressedGradients", "CountSketch", "compressed"]


class CompressedGradients:
    """A gradient computer followed by a count sketch; rows of length D exist for one part only.

    Where D is known only after the first batch and turns out to be at most `width`, rows stay as
    they are.

    Args:
        gradients: The computer of the long rows.
        width: Length of the short rows.
        seed: Seed of the map.
        memory_budget: Bytes for the long rows held at once.
    """

    def __init__(
        self, gradients: GradientComputer, width: int, *, seed: int, memory_budget: int
    ) -> None:
        self.gradients = gradients
        self._width, self._seed, self._memory_budget = width, seed, memory_budget
        self._sketch: CountSketch | None = None

    @property
    def dim(self) -> int:
        """Length of the short rows; raises what the computer raises while it does not know D."""
        return min(self.gradients.dim, self._width) if self._sketch is None else self._width

    @property
    def handling(self) -> dict[str, str] | None:
        """How each parameter is handled; None if the computer has no such attribute."""
        return getattr(self.gradients, "handling", None)

    def settled(self, batch: Batch) -> GradientComputer:
        """Return the computer that a batch needs: this one, or the inner one of short rows."""
        if self._sketch is None:
            if isinstance(self.gradients, LastLayerGradients):
                self.gradients.find(batch)
            try:
                dim = self.gradients.dim
            except (AttributeError, RuntimeError):
                dim = rows_of(self.gradients, batches.take(batch, 0, 1)).shape[1]
            if dim <= self._width:
                return self.gradients
            self._sketch = CountSketch(dim, self._width, self._seed)
        return self

    def __call__(self, batch: Batch) -> Tensor:
        """Return compressed gradients (n, dim) float32."""
        if self.settled(batch) is not self or self._sketch is None:
            return rows_of(self.gradients, batch)
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
        return inner if self._sketch is None else f"{inner}; count sketch to {self.dim:,}"


def compressed(
    gradients: GradientComputer, compress: str | int | None, *, seed: int, memory_budget: int
) -> GradientComputer:
    """Return the computer, followed by a count sketch if its rows are longer than `compress`.

    Args:
        gradients: Any gradient computer.
        compress: `"auto"` (8,192), a number of coordinates, or None for no compression.
        seed: Seed of the map.
        memory_budget: Bytes for the long rows held at once.

    Returns:
        `gradients` itself when its rows are known to be short enough.
    """
    if compress is None:
        return gradients
    width = DEFAULT_WIDTH if compress == "auto" else int(compress)
    try:
        is_short = gradients.dim <= width
    except (AttributeError, RuntimeError):
        is_short = False  # not known yet: the first batch shows
    if is_short:
        return gradients
    return CompressedGradients(gradients, width, seed=seed, memory_budget=memory_budget)
