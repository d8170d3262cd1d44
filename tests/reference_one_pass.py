"""The one-pass mode in plain float64 NumPy: what is left of each gradient under the final sketch.

A gradient that has been taken in is known afterwards by what the sketch of the moment holds of it:
its orthogonal projection onto the sketch's rows. Each later sketch holds a part of that part. At
the end it is `S p`, p what is left of g: no change of basis is named here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import reference

Floats = reference.Floats


class OnePass:
    """A sketch and what it still holds of every row (N, d) that it has seen, in their order."""

    def __init__(self, sketch_size: int, dim: int, block: int) -> None:
        self.sketch = reference.FrequentDirections(sketch_size, dim, block)
        self._left: Floats = np.zeros((0, dim))

    def update(self, rows: Floats) -> None:
        """Append rows (n, d); the last block of a stream may be short."""
        for start in range(0, len(rows), self.sketch.block):
            part = rows[start : start + self.sketch.block]
            self.sketch.update(part)
            self._left = self._held(np.concatenate([self._left, part]))
        # What waits for a full block is shrunk now, as at the end of a pass.
        nothing = reference.FrequentDirections(self.sketch.sketch_size, self.sketch.dim, 1)
        if len(rows) % self.sketch.block:
            self.sketch.merge(nothing)

    def merge(self, other: OnePass) -> None:
        """Go on with both streams; rows of the other follow."""
        self.sketch.merge(other.sketch)
        self._left = self._held(np.concatenate([self._left, other._left]))

    def coordinates(self) -> Floats:
        """S p (N, l) of every row."""
        return self.sketch.project(self._left)

    def _held(self, rows: Floats) -> Floats:
        basis = reference.unit(self.sketch.matrix())  # (l, d)
        return rows @ basis.T @ basis


def of_shards(parts: Sequence[Floats], sketch_size: int, block: int) -> OnePass:
    """Sketch parts of a stream apart and merge neighbours, in pairs, as shards are."""
    level = []
    for part in parts:
        one = OnePass(sketch_size, part.shape[1], block)
        one.update(part)
        level.append(one)
    while len(level) > 1:
        for first, second in zip(level[::2], level[1::2], strict=False):
            first.merge(second)
        level = level[::2]
    return level[0]
