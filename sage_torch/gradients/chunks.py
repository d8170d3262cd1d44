"""Batches cut into chunks that fit in memory, and into smaller ones if memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.loss import rows_counted_from

__all__ = ["Chunks", "is_out_of_memory"]


class Chunks:
    """Cuts batches into chunks of `size` examples, and halves `size` once if memory runs out.

    Args:
        size: Examples per chunk, at least 1.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self._was_halved = False

    def fit(self, size: int) -> None:
        """Set the size; after memory has run out, it can only become smaller."""
        self.size = min(self.size, size) if self._was_halved else size

    def run(self, batch: Batch, compute: Callable[[int, Batch], None]) -> None:
        """Call `compute(start, part)` on the parts of a batch, in order.

        Args:
            batch: n examples.
            compute: Computes one part and stores its results.

        Raises:
            SageError, ValueError: Raised by `compute`, with `row` counted in the whole batch.
            RuntimeError: Memory ran out a second time, or for a single example.

        Warns:
            UserWarning: Memory ran out and the size was halved.
        """
        n, start = batches.length(batch), 0
        while start < n:
            count = min(self.size, n - start)
            try:
                with rows_counted_from(start):
                    compute(start, batches.take(batch, start, start + count))
                start += count
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._was_halved or count == 1:
                    raise
            # Outside the handler: an error holds every tensor of the attempt.
            self.size, self._was_halved = count // 2, True
            warnings.warn(
                f"out of memory with {count} examples at once: going on with {self.size}; pass a "
                "smaller memory_budget to start with fewer",
                UserWarning,
                stacklevel=4,
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed; the CPU allocator raises a plain RuntimeError."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        "out of memory" in text or "allocate memory" in text
    )
