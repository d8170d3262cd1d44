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
from sage_torch.draws import whole_number
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

    Hand it to any `DataLoader`; the training loop stays as it is. The first iteration after the
    warm-up selects, on the model as it is then: the one being trained, so that training goes on
    where it was. `refresh_every` does it again on time, `select()` by hand. A failed or interrupted
    selection leaves the last good one in place.

    Without `dataset` the sampler belongs to the live `DataLoader` that holds it and takes that
    loader's data set and collate function.

    Args:
        model: The model being trained, warmed up for an epoch or more.
        dataset: The data set whose indices it yields; None for that of its loader.
        keep: A share in (0, 1] or a count of examples.
        shuffle: Whether each epoch has its own order (a function of seed and epoch); False for
            ascending indices.
        seed: Names the selection's draws and the epochs' orders.
        warmup_epochs: So many epochs from 0 on are all examples, before anything is selected.
        refresh_every: Select again, on the model as it is then, at the start of each epoch
            `warmup_epochs + m * refresh_every`; None to select once. With a draw the pointer runs
            on: epoch e sees `selection.epoch_indices(e - warmup_epochs)` of whatever selection is
            in place, so that later places of each new order are used, too, not its head only. That
            all untrimmed examples are seen within a turn holds while the order stays.
        **options: As in `select_subset`: rule, draw (`"rotate"` or `"random"`: each epoch takes
            others of the untrimmed examples), weights (`selection.weights`, one for each of
            `selection.indices`; the sampler yields indices only), trim, basis, class_balanced,
            quotas, sketch_size, gradients, params, compress, consensus, memory_budget, loss,
            score_dataset, collate_fn, batch_size (of scoring), num_workers (of scoring), progress.

    Raises:
        TypeError: An option is unknown or of a wrong kind, a number of epochs is no whole number.
        ValueError: An option is out of range, does not go with another or, where the data set is
            given, with its size (weights in streaming mode).

    Cost:
        A selection (see `select_subset`) once or at every refresh, then O(1) an index and 8 bytes
        an index kept. A warm-up epoch keeps no indices.

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
        warmup_epochs: int = 0,
        refresh_every: int | None = None,
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
        checked = Options(keep=keep, seed=seed, **options)  # now, long before the first epoch
        if refresh_every is not None:
            refresh_every = whole_number("refresh_every", refresh_every, least=1)
        if dataset is not None:
            total = count_both(dataset, checked.score_dataset)
            budget(keep, total)
            checked.is_streaming(total)  # refuses what the first epoch would
        self.model = model
        self.keep = keep
        self.shuffle = shuffle
        self.seed = seed
        self.warmup_epochs = whole_number("warmup_epochs", warmup_epochs)
        self.refresh_every = refresh_every
        self.epoch = 0
        self._dataset = dataset
        self._is_given = dataset is not None
        self._options = options
        self._selection: Selection | None = None
        self._since = 0  # the epoch that the selection was made for
        self._epoch_is_set = False

    def select(self) -> Selection:
        """Select now, on the model as it is, and use the result from the next iteration on.

        Draws run on, as after a refresh. The next refresh comes when it was due; what is selected
        before the warm-up is over lasts until then.

        Returns:
            The new selection.

        Raises:
            RuntimeError: No data set is known and no live `DataLoader` holds this sampler.
            TypeError, ValueError, SageError: As `select_subset`; the last selection stays.
        """
        return self._select(since=self.epoch)

    @property
    def selection(self) -> Selection | None:
        """The last good selection; None before the first."""
        return self._selection

    @property
    def indices(self) -> NDArray[np.int64]:
        """The examples of the coming epoch, int64, ascending; selects first if that is due.

        (k,), or all (N,) during the warm-up.
        """
        if self._is_warming_up(self.epoch):
            return np.arange(len(self), dtype=np.int64)
        return self._draw(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Name the coming epoch; from now on the caller counts, and iterating does not.

        Going back does not bring an earlier selection back, nor select: the last one stays until a
        later refresh is due.

        Args:
            epoch: From 0 on; the order is a function of seed, epoch and selection.

        Raises:
            TypeError: It is no whole number.
            ValueError: It is below 0.
        """
        self.epoch = whole_number("epoch", epoch)
        self._epoch_is_set = True

    def __len__(self) -> int:
        """Return the number of indices of the coming epoch, without running the model."""
        is_warming_up = self._is_warming_up(self.epoch)
        if self._selection is not None and not (is_warming_up or self._is_due(self.epoch)):
            return len(self._selection)
        if self._dataset is None:
            self._bind()
        total = count_examples(self._dataset)
        return total if is_warming_up else budget(self.keep, total)

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        dataset, _ = self._bind()  # a loader over another data set must not get indices of this one
        kept = None if self._is_warming_up(epoch) else self._draw(epoch)
        total = count_examples(dataset) if kept is None else len(kept)
        order = _core.Permutation(total, self.seed, epoch)
        for start in range(0, total, _CHUNK):
            count = min(_CHUNK, total - start)
            places = order.take(start, count) if self.shuffle else np.arange(start, start + count)
            yield from (places if kept is None else kept[places]).tolist()
        if not self._epoch_is_set:
            # Of several loaders that draw at once, the last to finish decides nothing twice.
            self.epoch = max(self.epoch, epoch + 1)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if not self._is_given:
            state["_dataset"] = None  # found through a loader: a copy finds its own
        return state

    def _is_warming_up(self, epoch: int) -> bool:
        return epoch < self.warmup_epochs

    def _scheduled(self, epoch: int) -> int:
        """Return the last epoch up to this one, after the warm-up, at whose start to select."""
        if self.refresh_every is None:
            return self.warmup_epochs
        return epoch - (epoch - self.warmup_epochs) % self.refresh_every

    def _is_due(self, epoch: int) -> bool:
        return self._selection is None or self._since < self._scheduled(epoch)

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch after the warm-up; selects first if that is due."""
        if self._is_due(epoch):
            self._select(since=self._scheduled(epoch))
        assert self._selection is not None
        # Not from the selection on: refreshed often, draws would use the heads of orders only.
        return self._selection.epoch_indices(epoch - self.warmup_epochs)

    def _select(self, *, since: int) -> Selection:
        dataset, collate_fn = self._bind()
        options = self._options.copy()
        if options.get("collate_fn") is None:
            options["collate_fn"] = collate_fn
        selection = select_subset(self.model, dataset, self.keep, seed=self.seed, **options)
        self._selection, self._since = selection, since
        return selection

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
