"""Reads a data set for a selection: batches with indices, in a seeded order, with progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, Dataset, Sampler
from tqdm import tqdm

import sage_torch._core as _core
from sage_torch.checks import count_examples, warn
from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch
from sage_torch.option_types import Collate
from sage_torch.options import Options
from sage_torch.reading.digest import digest
from sage_torch.reading.labels import Labels
from sage_torch.reading.loading import Ask, Loading, OpenLoader, Places
from sage_torch.reading.shards import Shard

_ORDER_STREAM = 2**32  # keeps the reading order apart from the sampler's epochs, streams 0, 1, ...
_CHUNK = 8_192
# Readings that look for random items: of 5 examples, 3 each. A flip with probability 1/2 escapes
# all of them once in 1,000 data sets.
_LOOKED_AT, _READINGS = 5, 16


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
        dataset: The data set whose examples are chosen, or the view of it that is scored.
        device: Where batches go.
        options: `collate_fn`, `batch_size`, `num_workers`, `seed`, `progress`, and those that say
            where labels are; with `gradients` of one's own, a batch may be any object.
        loading: How the loader of a sampler reads; the options say how many workers and which
            collate function.

    Attributes:
        labels: Finds the labels of a batch.

    Raises:
        TypeError: `dataset` is not a map-style data set.
        ValueError: It is empty.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        device: torch.device,
        options: Options,
        loading: Loading | None = None,
    ) -> None:
        self.total, self._dataset = count_examples(dataset), dataset
        self.device, self._options = device, options
        self.labels = Labels(options)
        loading = Loading() if loading is None else loading
        self._loader: OpenLoader | None = None
        self._loading = replace(
            loading,
            num_workers=options.num_workers,
            collate_fn=options.collate_fn,
            pin_memory=loading.pin_memory and device.type == "cuda",
        )

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
        order = SeededOrder(shard, options.seed, begin=begin)
        # A batch has the seed of its place: both passes see the same draws of random transforms.
        seed = options.seed + shard.start + begin
        places = (
            (of_batch, (seed + number * options.batch_size) % 2**63)
            for number, of_batch in enumerate(BatchSampler(order, options.batch_size, False))
        )
        start = begin
        for batch in self._reading(places):
            n = min(options.batch_size, len(shard) - start)
            check_count(batch, n, takes_any=takes_any(options))
            indices = order.indices(start, n)
            yield indices, batches.to_device(batch, self.device), self.labels.of(batch, indices)
            start += n
        check_length(self._dataset, self.total)

    def close(self) -> None:
        """Stop the workers, if there are any; a later reading starts others."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def probe(self, indices: NDArray[np.int64]) -> Batch | None:
        """Return some examples as a batch on the device; None if two readings of them differ."""
        places = (indices.tolist(), self._options.seed)
        ((first, batch),) = self._reading([places], _digest_and_batch)
        (second,) = self._reading([places], _digest)
        return batches.to_device(batch, self.device) if first == second else None

    def some(self, indices: NDArray[np.int64]) -> Batch:
        """Return some examples as a batch on the device.

        Raises:
            ValueError: The collate function dropped examples.
        """
        (batch,) = self._reading([(indices.tolist(), self._options.seed)])
        check_count(batch, len(indices), takes_any=takes_any(self._options))
        return batches.to_device(batch, self.device)

    def _reading(self, places: Iterable[Places], ask: Ask | None = None) -> Iterator[Any]:
        check_length(self._dataset, self.total)
        if self._loader is None:
            options = self._options
            self._loader = self._loading.open(
                self._dataset, batch_size=options.batch_size, seed=options.seed
            )
        try:
            yield from self._loader.read(places, ask)
        except (IndexError, KeyError):
            check_length(self._dataset, self.total)
            raise

    def warn_if_random(self) -> None:
        """Warn if reading some examples several times gives different inputs.

        Cost:
            16 readings, by the workers if there are any; fewer where the examples are random.
        """
        count = min(_LOOKED_AT, self.total)
        looked_at = [(i * self.total // count, self._options.seed + i) for i in range(count)]
        places = [([place] * (_READINGS // count), seed % 2**63) for place, seed in looked_at]
        if any(self._reading(places, _differ)):
            warn(
                "reading an example again gave different inputs: scores will be those of one "
                "random view of each example; give select_subset the same examples without "
                "augmentation, or SageSampler those as score_dataset="
            )


def check_length(dataset: Dataset[Any], total: int) -> None:
    """Check that a data set is as long as it was.

    Raises:
        ValueError: It is not.
    """
    now = len(dataset)  # type: ignore[arg-type]
    if now != total:
        raise ValueError(
            f"expected a data set of {total} examples in both passes, but it has {now} now; do not "
            "change it during a selection"
        )


def takes_any(options: Options) -> bool:
    """Return whether a batch may be any object: only gradients of one's own read it."""
    return not isinstance(options.gradients, str)


def check_count(batch: Batch, n: int, *, takes_any: bool) -> None:
    """Check that a batch of n examples holds n.

    Args:
        batch: What the collate function made of n examples.
        n: How many examples were read.
        takes_any: Whether the batch may be any object, whose tensors need not count the examples.

    Raises:
        ValueError: The collate function has dropped examples, or the batch has no examples to
            count.
    """
    if takes_any:
        return
    found = batches.length(batch)
    if found != n:
        raise ValueError(
            f"expected a batch of {n} examples, got {found}: the collate function must keep every "
            "example; drop none in collate_fn"
        )


def _differ(examples: list[Any], joins: Collate) -> bool:
    """Return whether readings of one example differ."""
    return not all(batches.same_item(examples[0], other) for other in examples[1:])


def _digest_and_batch(examples: list[Any], joins: Collate) -> tuple[str, Batch]:
    return digest(examples), joins(examples)


def _digest(examples: list[Any], joins: Collate) -> str:
    return digest(examples)


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
