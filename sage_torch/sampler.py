"""`SageSampler`: a `torch.utils.data.Sampler` that selects on first use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, Sampler
from typing_extensions import Unpack

from sage_torch import _core
from sage_torch.binding import find_loader
from sage_torch.options import (
    Collate,
    Options,
    SelectionOptions,
    budget,
    count_both,
    count_examples,
)
from sage_torch.select import select_subset
from sage_torch.selection import Selection

_CHUNK = 8_192


class SageSampler(Sampler[int]):
    """Yields the indices of the examples worth a gradient step, shuffled anew each epoch.

    Hand it to any `DataLoader`; the training loop stays as it is. The first iteration selects, on
    the model as it is then; `select()` does it by hand, and again later in training. A failed or
    interrupted selection leaves the last good one in place.

    Without `dataset` the sampler belongs to the live `DataLoader` that holds it and takes that
    loader's data set and collate function.

    Args:
        model: The model being trained, warmed up for an epoch or more.
        dataset: The data set whose indices it yields; None for that of its loader.
        keep: A share in (0, 1] or a count of examples.
        shuffle: Whether each epoch has its own order (a function of seed and epoch); False for
            ascending indices.
        seed: Names the selection's draws and the epochs' orders.
        **options: As in `select_subset`: rule, trim, basis, class_balanced, quotas, sketch_size,
            gradients, compress, consensus, memory_budget, loss, score_dataset, collate_fn,
            batch_size (of scoring), num_workers (of scoring), progress.

    Raises:
        TypeError: An option is unknown or of a wrong kind.
        ValueError: An option is out of range.

    Cost:
        One selection (see `select_subset`), then O(1) an index and 8 bytes an index kept.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from sage_torch import SageSampler
        >>> data = TensorDataset(torch.randn(80, 5), torch.arange(80) % 2)
        >>> sampler = SageSampler(torch.nn.Linear(5, 2), keep=0.25, progress=False)
        >>> loader = DataLoader(data, batch_size=8, sampler=sampler)
        >>> len(loader), sum(len(targets) for _, targets in loader)
        (3, 20)
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset[Any] | None = None,
        *,
        keep: float,
        shuffle: bool = True,
        seed: int = 0,
        **options: Unpack[SelectionOptions],
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
        unknown = set(options) - set(SelectionOptions.__annotations__)
        if unknown:
            raise TypeError(
                f"unknown option {', '.join(map(repr, sorted(unknown)))}; expected some of "
                f"{', '.join(sorted(SelectionOptions.__annotations__))}"
            )
        Options(keep=keep, seed=seed, **options)  # checked now, long before the first epoch
        if dataset is not None:
            budget(keep, count_both(dataset, options.get("score_dataset")))
        self.model = model
        self.keep = keep
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self._dataset = dataset
        self._is_given = dataset is not None
        self._options = options
        self._selection: Selection | None = None
        self._epoch_is_set = False

    def select(self) -> Selection:
        """Select now, on the model as it is, and use the result from the next iteration on.

        Returns:
            The new selection.

        Raises:
            RuntimeError: No data set is known and no live `DataLoader` holds this sampler.
            TypeError, ValueError, SageError: As `select_subset`; the last selection stays.
        """
        dataset, collate_fn = self._bind()
        options = self._options.copy()
        if options.get("collate_fn") is None:
            options["collate_fn"] = collate_fn
        selection = select_subset(self.model, dataset, self.keep, seed=self.seed, **options)
        self._selection = selection
        return selection

    @property
    def selection(self) -> Selection | None:
        """The last good selection; None before the first."""
        return self._selection

    @property
    def indices(self) -> NDArray[np.int64]:
        """The examples of the coming epoch, int64 (k,) ascending; selects if nothing is yet."""
        return self._current().indices

    def set_epoch(self, epoch: int) -> None:
        """Name the coming epoch; from now on the caller counts, and iterating does not.

        Args:
            epoch: From 0 on; the order is a function of seed and epoch.

        Raises:
            ValueError: It is below 0.
        """
        if epoch < 0:
            raise ValueError(f"expected an epoch of at least 0, got {epoch}")
        self.epoch = int(epoch)
        self._epoch_is_set = True

    def __len__(self) -> int:
        """Return the number of indices of the coming epoch, without running the model."""
        if self._selection is not None:
            return len(self._selection)
        if self._dataset is None:
            self._bind()
        return budget(self.keep, count_examples(self._dataset))

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        self._bind()  # a loader over another data set must not get indices of this one
        kept = self._current().indices
        order = _core.Permutation(len(kept), self.seed, epoch)
        for start in range(0, len(kept), _CHUNK):
            count = min(_CHUNK, len(kept) - start)
            places = order.take(start, count) if self.shuffle else slice(start, start + count)
            yield from kept[places].tolist()
        if not self._epoch_is_set:
            # Of several loaders that draw at once, the last to finish decides nothing twice.
            self.epoch = max(self.epoch, epoch + 1)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if not self._is_given:
            state["_dataset"] = None  # found through a loader: a copy finds its own
        return state

    def _current(self) -> Selection:
        return self.select() if self._selection is None else self._selection

    def _bind(self) -> tuple[Dataset[Any], Collate | None]:
        if self._is_given:
            assert self._dataset is not None
            return self._dataset, None
        dataset, collate_fn = find_loader(self)
        if self._dataset is not None and dataset is not self._dataset:
            raise RuntimeError(
                "expected the data set that this sampler selected from, but a DataLoader over "
                "another one holds it now; make a new SageSampler for it"
            )
        if self._dataset is None:
            count_examples(dataset)
        self._dataset = dataset
        return dataset, collate_fn
