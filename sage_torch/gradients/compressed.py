"""A count sketch between a gradient computer and the sketch, which shortens long gradients."""

from __future__ import annotations

import torch
from torch import Tensor

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.computer import GradientComputer, rows_of
from sage_torch.gradients.count_sketch import DEFAULT_WIDTH, CountSketch
from sage_torch.gradients.last_layer import LastLayerGradients, outer_products
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
        splits: Whether any batch of n examples can be cut; False for a computer of one's own, whose
            batches may be any objects. Those are cut only where each part is a tensor of n rows.
    """

    def __init__(
        self,
        gradients: GradientComputer,
        width: int,
        *,
        seed: int,
        memory_budget: int,
        splits: bool = True,
    ) -> None:
        self.gradients = gradients
        self._splits, self._is_short = splits, False
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

    def settled(self, batch: Batch, n: int | None = None) -> GradientComputer:
        """Return the computer that a batch needs: this one, or the inner one of short rows."""
        if self._sketch is None and not self._is_short:
            if isinstance(self.gradients, LastLayerGradients):
                self.gradients.find(batch)
            n = batches.length(batch) if n is None else n
            try:
                dim = self.gradients.dim
            except (AttributeError, RuntimeError):
                count = 1 if self._can_cut(batch, n) else n
                part = batch if count == n else batches.take(batch, 0, count)
                dim = rows_of(self.gradients, part, count).shape[1]
            self._is_short = dim <= self._width
            if not self._is_short:
                self._sketch = CountSketch(dim, self._width, self._seed)
        return self.gradients if self._is_short else self

    def __call__(self, batch: Batch, n: int | None = None) -> Tensor:
        """Return compressed gradients (n, dim) float32; n is counted in the batch unless given."""
        n = batches.length(batch) if n is None else n
        if self.settled(batch, n) is not self or self._sketch is None:
            return rows_of(self.gradients, batch, n)
        # Two copies of the long rows: the result and the parts that it was concatenated from.
        at_once = max(1, self._memory_budget // (8 * self._sketch.dim))
        if at_once >= n or not self._can_cut(batch, n):
            return self._sketch(rows_of(self.gradients, batch, n))
        parts = []
        for start in range(0, n, at_once):
            stop = min(n, start + at_once)
            with rows_counted_from(start):
                rows = rows_of(self.gradients, batches.take(batch, start, stop), stop - start)
                parts.append(self._sketch(rows))
        return torch.cat(parts)

    @property
    def shortens(self) -> bool:
        """Whether rows have turned out to be longer than `width`."""
        return self._sketch is not None

    def shortened(self, delta: Tensor, hidden: Tensor, *, bias: bool) -> Tensor:
        """Return compressed gradients (n, width) of a linear layer, given by their factors.

        Args:
            delta: (n, C) float32.
            hidden: (n, H) float32.
            bias: Whether the layer has a bias.
        """
        if self._sketch is None:
            raise RuntimeError("expected rows that are too long; ask `shortens` first")
        at_once = max(1, self._memory_budget // (8 * self._sketch.dim))
        parts = zip(delta.split(at_once), hidden.split(at_once), strict=True)
        return torch.cat([self._sketch(outer_products(d, h, bias=bias)) for d, h in parts])

    def _can_cut(self, batch: Batch, n: int) -> bool:
        return self._splits or batches.has_rows_only(batch, n)

    def describe(self) -> str:
        """Return one line that describes the computation."""
        inner = getattr(self.gradients, "describe", lambda: repr(self.gradients))()
        return inner if self._sketch is None else f"{inner}; count sketch to {self.dim:,}"


def counted_rows(gradients: GradientComputer, batch: Batch, n: int) -> Tensor:
    """Return the gradients (n, D) of a batch that n examples were read for.

    Raises:
        TypeError, ValueError: As `rows_of`.
    """
    if isinstance(gradients, CompressedGradients):
        return rows_of(lambda batch: gradients(batch, n), batch, n)
    return rows_of(gradients, batch, n)


def compressed(
    gradients: GradientComputer,
    compress: str | int | None,
    *,
    seed: int,
    memory_budget: int,
    splits: bool = True,
) -> GradientComputer:
    """Return the computer, followed by a count sketch if its rows are longer than `compress`.

    Args:
        gradients: Any gradient computer.
        compress: `"auto"` (8,192), a number of coordinates, or None for no compression.
        seed: Seed of the map.
        memory_budget: Bytes for the long rows held at once.
        splits: As in `CompressedGradients`.

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
    return CompressedGradients(
        gradients, width, seed=seed, memory_budget=memory_budget, splits=splits
    )
