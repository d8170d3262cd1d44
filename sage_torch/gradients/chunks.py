"""As many examples at once as memory has room for, and fewer when it turns out to have less."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from sage_torch._core import SageError
from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.loss import in_whole_batch

__all__ = ["Chunks", "is_out_of_memory"]


class Chunks:
    """Cuts batches into parts of a size; when memory runs out the size is halved, once.

    Args:
        size: Examples at once, at least 1.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self._was_halved = False

    def fit(self, size: int) -> None:
        """Take another size; not a larger one after memory has run out."""
        self.size = min(self.size, size) if self._was_halved else size

    def run(self, batch: Batch, compute: Callable[[int, Batch], None]) -> None:
        """Call `compute(start, part)` on the parts of a batch, in order.

        Args:
            batch: n examples.
            compute: Computes one part and puts its results where they belong.

        Raises:
            SageError, ValueError: As `compute` does, `row` counted in the whole batch.
            RuntimeError: Memory ran out a second time, or for a single example.

        Warns:
            UserWarning: Memory ran out and the size was halved.
        """
        n, start = batches.length(batch), 0
        while start < n:
            count = min(self.size, n - start)
            try:
                compute(start, batches.take(batch, start, start + count))
                start += count
                continue
            except (SageError, ValueError) as error:
                moved = in_whole_batch(error, start)
                if moved is error:
                    raise
                raise moved from error
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._was_halved or count == 1:
                    raise
            # Outside the handler: an error holds every tensor of the attempt.
            self.size, self._was_halved = count // 2, True
            warnings.warn(
                f"out of memory with {count} examples at once: going on with {self.size}; pass a "
                "smaller memory_budget to begin there",
                UserWarning,
                stacklevel=4,
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; the CPU allocator reports it as a plain RuntimeError."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        "out of memory" in text or "allocate memory" in text
    )
