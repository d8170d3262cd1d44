"""Reads a data set for a selection: batches with indices, in a seeded order, with progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

import sage_torch._core as _core
from sage_torch.checks import count_both, warn
from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch
from sage_torch.options import Options
from sage_torch.reading.digest import same_contents
from sage_torch.reading.labels import Labels
from sage_torch.reading.shards import Shard
from sage_torch.reading.user_state import seed_everything

_ORDER_STREAM = 2**32  # keeps the reading order apart from the sampler's epochs, streams 0, 1, ...
_CHUNK = 8_192


class SeededOrder(Sampler[int]):
    """A shard's indices in a seeded order; memory does not grow with their number.

    A stream sorted by class would show the sketch one class after the other, and would harm a
    consensus that is carried along (benchmarks/choices/consensus.py). In this order, every part of
    the stream is a fair draw of the whole.
    """

    def __init__(self, shard: Shard, seed: int, *, begin: int = 0) -> None:
        self._order = _core.Permutation(len(shard), seed, _ORDER_STREAM + shard.number)
        self._first, self._begin = shard.start, begin

    def __iter__(self) -> Iterator[int]:
        total = len(self._order)
        for start in range(self._begin, total, _CHUNK):
            yield from self.indices(start, min(_CHUNK, total - start)).tolist()

    def __len__(self) -> int:
        return len(self._order) - self._begin

    def indices(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the examples at places `start` to `start + count` of the order."""
        return self._first + self._order.take(start, count)


class Reader:
    """Reads the data set for scoring: batches on the model's device, with their indices.

    Args:
        dataset: The data set whose examples are chosen.
        device: Where batches go.
        options: `score_dataset`, `collate_fn`, `batch_size`, `num_workers`, `seed`, `progress`, and
            those that say where labels are.

    Attributes:
        labels: Finds the labels of a batch.

    Raises:
        TypeError: `dataset` is not a map-style data set.
        ValueError: It is empty, or `score_dataset` has another length.
    """

    def __init__(self, dataset: Dataset[Any], device: torch.device, options: Options) -> None:
        self.total = count_both(dataset, options.score_dataset)
        self._read = dataset if options.score_dataset is None else options.score_dataset
        self._views = (dataset, self._read)
        self.device, self._options = device, options
        self.labels = Labels(options)

    @contextmanager
    def progress(self, title: str, shards: Sequence[Shard]) -> Iterator[tqdm[None]]:
        """Show one bar for a pass over some shards."""
        with tqdm(
            total=sum(map(len, shards)),
            desc=title,
            unit="ex",
            delay=2,  # a pass under two seconds needs no bar
            leave=None,  # nested under a bar of the caller, it clears itself
            disable=not self._options.progress,
        ) as bar:
            yield bar

    def indices(self, shard: Shard, start: int, count: int) -> NDArray[np.int64]:
        """Return the indices of some examples of a shard, by their places in its reading order."""
        return SeededOrder(shard, self._options.seed).indices(start, count)

    def batches(
        self, shard: Shard, *, begin: int = 0
    ) -> Iterator[tuple[NDArray[np.int64], Batch, NDArray[Any] | None]]:
        """Yield `(indices (n,), batch on the device, labels (n,) or None)`.

        Args:
            shard: The examples to read.
            begin: How many of the first examples, in reading order, to leave out.

        Raises:
            ValueError: The data set's length changed, or the collate function dropped examples.
        """
        options = self._options
        seed = (options.seed + shard.number) % 2**63
        order = SeededOrder(shard, options.seed, begin=begin)
        # Its own generator, so that no number is drawn from the global one.
        generator = torch.Generator().manual_seed(seed)
        loader: DataLoader[Any] = DataLoader(
            self._read,
            batch_size=options.batch_size,
            sampler=order,
            num_workers=options.num_workers,
            collate_fn=options.collate_fn,
            generator=generator,
        )
        seed_everything(seed)  # both passes see the same draws of a random transform
        with torch.device("cpu"):  # the generator is there, whatever torch's default device
            reading = self._noticing_lost_examples(iter(loader))
        start = begin
        for batch in reading:
            n = batches.length(batch)
            expected = min(options.batch_size, len(shard) - start)
            if n != expected:
                raise ValueError(
                    f"expected a batch of {expected} examples, got {n}: the collate function "
                    "must keep every example"
                )
            indices = order.indices(start, n)
            yield indices, batches.to_device(batch, self.device), self.labels.of(batch, indices)
            start += n
        self._check_length()

    def probe(self, indices: NDArray[np.int64]) -> Batch | None:
        """Return some examples as a batch on the device; None if two readings of them differ."""
        readings = []
        for _ in range(2):
            seed_everything(self._options.seed)
            readings.append([self._read[i] for i in indices.tolist()])
        if not same_contents(*readings):
            return None
        collate = self._options.collate_fn or default_collate
        return batches.to_device(collate(readings[0]), self.device)

    def _noticing_lost_examples(self, reading: Iterator[Batch]) -> Iterator[Batch]:
        self._check_length()
        try:
            yield from reading
        except (IndexError, KeyError):
            self._check_length()
            raise

    def _check_length(self) -> None:
        for view in self._views:
            now = len(view)  # type: ignore[arg-type]
            if now != self.total:
                raise ValueError(
                    f"expected a data set of {self.total} examples in both passes, but it has "
                    f"{now} now; do not change it during a selection"
                )

    def warn_if_random(self) -> None:
        """Warn if reading item 0 twice gives different inputs."""
        if not batches.same_item(self._read[0], self._read[0]):
            warn(
                "reading item 0 twice gave different inputs: scores will be those of one random "
                "view of each example; pass score_dataset=, the same examples without augmentation"
            )


@contextmanager
def naming_the_example(
    indices: NDArray[np.int64] | range, *, of: str = "the data set"
) -> Iterator[None]:
    """Add the example's index to an error that names a position in a batch."""
    try:
        yield
    except (_core.SageError, ValueError) as error:
        row = getattr(error, "row", None)
        if row is None:
            raise
        named = type(error)(f"example {indices[row]} of {of}: {error}")
        named.row, named.index = row, int(indices[row])  # type: ignore[union-attr]
        raise named from error
