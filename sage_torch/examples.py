"""The data set as a selection reads it: batches with indices, in a seeded order, with progress."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from sage_torch import _core
from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch
from sage_torch.options import Options, count_both
from sage_torch.user_state import seed_everything

_ORDER_STREAM = 2**32  # keeps the reading order apart from the sampler's epochs, streams 0, 1, ...
_CHUNK = 8_192


class SeededOrder(Sampler[int]):
    """Indices `0..total` in a seeded order, in memory that does not grow with their number.

    A stream sorted by class would show the sketch one class after the other, and a consensus that
    is carried along would suffer (benchmarks/consensus.py); in this order every part of the stream
    is a fair draw of the whole.
    """

    def __init__(self, total: int, seed: int, stream: int = _ORDER_STREAM) -> None:
        self._order = _core.Permutation(total, seed, stream)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), _CHUNK):
            yield from self.indices(start, min(_CHUNK, len(self) - start)).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def indices(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the examples at places `start` to `start + count` of the order."""
        return self._order.take(start, count)


class Examples:
    """The data set as scoring reads it: batches on the model's device, with their indices.

    Args:
        dataset: The data set whose examples are chosen.
        device: Where batches go.
        options: `score_dataset`, `collate_fn`, `batch_size`, `num_workers`, `seed`, `progress`.

    Raises:
        TypeError: Not a map-style data set.
        ValueError: It is empty, or `score_dataset` has another length.
    """

    def __init__(self, dataset: Dataset[Any], device: torch.device, options: Options) -> None:
        self.total = count_both(dataset, options.score_dataset)
        self._read = dataset if options.score_dataset is None else options.score_dataset
        self._views = (dataset, self._read)
        self._device, self._options = device, options
        self._order = SeededOrder(self.total, options.seed)
        if options.rule != "random":  # which reads labels only
            self._warn_if_random()

    def batches(self, title: str) -> Iterator[tuple[NDArray[np.int64], Batch, Tensor | None]]:
        """Yield `(indices (n,), batch on the device, integer labels (n,) on the CPU or None)`.

        Raises:
            ValueError: The data set's length changed, or the collate function dropped examples.
        """
        options = self._options
        # Its own generator: the global one gives no number away.
        generator = torch.Generator().manual_seed(options.seed)
        loader: DataLoader[Any] = DataLoader(
            self._read,
            batch_size=options.batch_size,
            sampler=self._order,
            num_workers=options.num_workers,
            collate_fn=options.collate_fn,
            generator=generator,
        )
        seed_everything(options.seed)  # both passes see the same draws of a random transform
        with tqdm(
            total=self.total,
            desc=title,
            unit="ex",
            delay=2,  # a pass under two seconds needs no bar
            leave=None,  # nested under a bar of the caller's, it clears itself
            disable=not options.progress,
        ) as bar:
            start = 0
            with torch.device("cpu"):  # a default device of the user's is not the generator's
                reading = self._noticing_lost_examples(iter(loader))
            for batch in reading:
                n = batches.length(batch)
                expected = min(options.batch_size, self.total - start)
                if n != expected:
                    raise ValueError(
                        f"expected a batch of {expected} examples, got {n}: the collate function "
                        "must keep every example"
                    )
                labels = batches.labels(batch)
                yield (
                    self._order.indices(start, n),
                    batches.to_device(batch, self._device),
                    None if labels is None else labels.cpu(),
                )
                start += n
                bar.update(n)
        self._check_length()

    def first_batch(self) -> Batch:
        """Return the first batch, on the device."""
        with_one = iter(self.batches(""))
        try:
            return next(with_one)[1]
        finally:
            with_one.close()  # type: ignore[attr-defined]

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

    def _warn_if_random(self) -> None:
        if not batches.same_item(self._read[0], self._read[0]):
            warnings.warn(
                "reading item 0 twice gave different inputs: scores will be those of one random "
                "view of each example; pass score_dataset=, the same examples without augmentation",
                UserWarning,
                stacklevel=5,
            )
