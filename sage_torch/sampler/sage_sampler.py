"""`SageSampler`: a `torch.utils.data.Sampler` that selects on first use."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, Sampler
from typing_extensions import Unpack

from sage_torch.checks import count_both, count_examples, whole_number
from sage_torch.option_types import SelectionOptions
from sage_torch.options import Options
from sage_torch.passes.job import Plan
from sage_torch.reading.ranks import ranks
from sage_torch.sampler.binding import Binding
from sage_torch.sampler.epoch_iterator import (
    EpochIterator,
    Place,
    Running,
    check_same,
    load_generator,
)
from sage_torch.sampler.epoch_order import EpochOrder, Split
from sage_torch.sampler.refresh import Refresher
from sage_torch.sampler.schedule import Length, Refresh, Schedule
from sage_torch.selection.result import Selection

_HIGHEST = 2**63 - 1
_STATE = {"epoch", "position", "order", "since", "selection"} | {"first_reading", "epoch_is_set"}
_STATE |= {"made_for", "generator"}


class SageSampler(Sampler[int]):
    """Yields the indices of the examples worth a gradient step, shuffled anew each epoch.

    Hand it to any `DataLoader`; the training loop stays as it is. The first iteration after the
    warm-up selects with the model being trained, and leaves that model as it was. `refresh_every`
    selects again on a schedule, `select()` at once. A failed or interrupted selection leaves the
    last good one in place.

    An epoch ends when its last index is yielded. An epoch that is broken off begins again in the
    same order: if you leave epochs early, name them with `set_epoch`.

    Without `dataset` the sampler belongs to the live `DataLoader` that holds it and takes that
    loader's data set.

    A selection reads the data as the loader does: with its collate function, `num_workers`,
    `worker_init_fn`, `multiprocessing_context`, `pin_memory`, `prefetch_factor` and `timeout`,
    except for those that the options give. So a file that the data set opens in a worker is opened
    in workers only.

    Args:
        model: The model being trained, warmed up for an epoch or more.
        dataset: The data set whose indices it yields; None for its loader's.
        keep: A share in (0, 1] or a count of examples.
        score_dataset: The same examples without augmentation, in the same order. A selection reads
            them instead; the loader's data set must stay as long meanwhile. None to read that one.
        shuffle: Whether each epoch has its own order (a function of seed and epoch); False for
            ascending indices.
        seed: Names the selection's draws and the epochs' orders.
        generator: A CPU generator that names each epoch's order instead: one number is drawn from
            it when the epoch begins.
        warmup_epochs: The first so many epochs yield all examples; then it selects. With two
            or more, a sample of the labels is read after the first: none is known by heart then.
        refresh_every: Select again, with the model as it is then, at the start of each epoch
            `warmup_epochs + m * refresh_every`, or of each epoch for which a callable
            `epoch -> bool` is true; None to select once. A refresh does not restart a draw: epoch e
            sees `selection.epoch_indices(e - warmup_epochs)` of the current selection. So later
            places of each new order are used too, not only its head. While the order stays, all
            untrimmed examples are seen within one turn.
        length: `"subset"`: an epoch after the warm-up has k indices; `"fixed"`: as many as the data
            set has examples, by repeating the subset, each time in a new order.
        num_replicas: Over how many ranks the epoch is split; None for those of the process group,
            unless the holder of the sampler splits already (Accelerate, Hugging Face's Trainer).
        rank: Which part this process gets; given together with `num_replicas`.
        drop_last: All ranks get equally many indices. True cuts the end of the order; False pads
            it from its start.
        **options: Options of `select_subset` except `seed`. `batch_size` and `num_workers` apply to
            scoring. Each selection has a folder of its own within `checkpoint`.

    Raises:
        TypeError: An option is unknown or of a wrong kind, or a number of epochs is not whole.
        ValueError: An option is out of range or contradicts another. Where the data set is given,
            also: an option does not fit its size (a count above it).

    Cost:
        A selection (see `select_subset`) once or at every refresh, then O(1) time and 8 bytes per
        index kept. A warm-up epoch keeps no indices.

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

    generator: torch.Generator  # set only if given: Accelerate replaces one that is None

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset[Any] | None = None,
        *,
        keep: float,
        score_dataset: Dataset[Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        generator: torch.Generator | None = None,
        warmup_epochs: int = 0,
        refresh_every: Refresh = None,
        length: Length = "subset",
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        **options: Unpack[SelectionOptions],
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
        asked = Options.given(keep=keep, seed=seed, **options)  # long before the first epoch
        self._schedule = Schedule(warmup_epochs, refresh_every, length)
        if dataset is not None:  # raise now what the first epoch would
            Plan.of(asked, count_both(dataset, score_dataset), is_group=False)
        elif score_dataset is not None:
            count_examples(score_dataset, "score_dataset")
        if generator is not None:
            if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
                raise TypeError(f"expected generator to be a CPU torch.Generator, got {generator}")
            self.generator = generator
        self.shuffle = shuffle
        self.epoch = 0
        split = Split.given(num_replicas, rank, drop_last)
        self._binding = Binding(dataset, split, drop_last=drop_last)
        has_workers = "num_workers" in options
        self._refresher = Refresher(
            model, self._schedule, asked, has_workers=has_workers, score_dataset=score_dataset
        )
        self._epoch_is_set = False
        self._named: int | None = None  # the caller named it; it has not begun
        self._running: Running | None = None  # the epoch last begun
        self._resumed: Place | None = None  # where the next iterator begins, from a loaded state

    def select(self) -> Selection:
        """Select now with the model as it is, and use the result from the next iteration on.

        A draw continues as after a refresh. The next refresh comes when it was due; a selection
        made during the warm-up lasts until its end. All ranks of a job must call this together.

        Returns:
            The new selection.

        Raises:
            RuntimeError: No data set is known and no live `DataLoader` holds this sampler.
            TypeError, ValueError, SageError: As `select_subset`; the last selection stays.
        """
        return self._refresher.select(self.epoch, self._binding.source(self))

    @property
    def model(self) -> nn.Module:
        """The model being trained."""
        return self._refresher.model

    @property
    def keep(self) -> float:
        """The share, or the count, that is kept."""
        return self._options.keep

    @property
    def seed(self) -> int:
        """The seed of the selection's draws and of the epochs' orders."""
        return self._options.seed

    @property
    def selection(self) -> Selection | None:
        """The last good selection; None before the first."""
        return self._refresher.selection

    @property
    def indices(self) -> NDArray[np.int64]:
        """The examples of the coming epoch, int64, ascending; selects first if a selection is due.

        Shape (k,), or (N,) during the warm-up: those of all ranks, without repetitions.
        """
        source = self._binding.source(self)
        if self._schedule.is_warming_up(self.epoch):
            return np.arange(count_examples(source.dataset), dtype=np.int64)
        selection = self._refresher.selection_for(self.epoch, source)
        return selection.epoch_indices(self.epoch - self.warmup_epochs)

    @property
    def warmup_epochs(self) -> int:
        """How many epochs, from 0 on, yield all examples."""
        return self._schedule.warmup_epochs

    @property
    def refresh_every(self) -> Refresh:
        """When to select again."""
        return self._schedule.refresh_every

    @property
    def length(self) -> Length:
        """Whether epochs are as long as the subset or as the data set."""
        return self._schedule.length

    def set_epoch(self, epoch: int) -> None:
        """Name the coming epoch; from now on the caller counts epochs, and iterating does not.

        Going back neither restores an earlier selection nor selects: the last one stays until a
        later refresh is due. If a loaded state is in the middle of this epoch, it resumes there;
        any other epoch begins at its start.

        Args:
            epoch: From 0 on; the order is a function of seed, epoch and selection.

        Raises:
            TypeError: It is no whole number.
            ValueError: It is below 0.
            RuntimeError: One of several processes reads for all (Accelerate's `dispatch_batches`).
        """
        epoch = whole_number("epoch", epoch)
        self._binding.check_readers(self)
        self.epoch = self._named = epoch
        self._epoch_is_set = True
        if self._resumed is not None and self._resumed.epoch != epoch:
            self._resumed = None

    def __len__(self) -> int:
        """Return the number of this rank's indices in the coming epoch; the model is not run.

        An epoch ends when its last index is yielded. A loader reads that index before its loop ends
        (with workers, batches before). From then on this is the next epoch's: ask before the loop.
        """
        return self._binding.split(self).share(self._length(self.epoch, self._total()))

    def steps_per_epoch(self, epoch: int, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches this rank gets in an epoch, as learning-rate schedules need it.

        Args:
            epoch: From 0 on.
            batch_size: The loader's, on one rank.
            drop_last: Whether the loader leaves out a last batch that is not full.

        Raises:
            RuntimeError: No data set is known and no live `DataLoader` holds this sampler.
            TypeError, ValueError: An argument is of a wrong kind, or out of range.
        """
        batch_size = whole_number("batch_size", batch_size, least=1)
        indices = self._length(whole_number("epoch", epoch), self._total())
        return self._binding.steps(self, indices, batch_size, drop_last=drop_last)

    def total_steps(self, epochs: int, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches this rank gets in the first `epochs` epochs, as above."""
        epochs = whole_number("epochs", epochs)
        warm_up = min(epochs, self.warmup_epochs)
        parts = ((0, warm_up), (self.warmup_epochs, epochs - warm_up))
        return sum(
            count * self.steps_per_epoch(epoch, batch_size, drop_last=drop_last)
            for epoch, count in parts
            if count
        )

    def __iter__(self) -> EpochIterator:
        return EpochIterator(self)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to resume from here: numbers, and tensors on the CPU.

        `"epoch"` and `"position"` say how many indices of the epoch this rank has yielded. A loader
        with workers reads ahead of the training loop. To lose nothing then, use torchdata's
        `StatefulDataLoader`: it asks at the right moment and keeps the state within its own. Give
        it the sampler and a batch size: a `BatchSampler` around the sampler has no state.

        Returns:
            A dict that `torch.load` reads with `weights_only=True`; it contains the selection.
        """
        return {
            **self._place().as_state(),
            **self._refresher.as_state(),
            "epoch_is_set": self._epoch_is_set,
            "made_for": self._identity(),
            "generator": self.generator.get_state() if hasattr(self, "generator") else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where another sampler was; nothing is selected again.

        The next iterator yields the rest of the epoch that was under way; `len()` is still that of
        the whole epoch. If the caller counted epochs and one had just ended, name the next one with
        `set_epoch`, before or after this call.

        Args:
            state_dict: What `state_dict` gave.

        Raises:
            ValueError: It is damaged, or of a sampler with another seed, `keep`, order or data set;
                this one has not changed then.
        """
        missing = _STATE - set(state_dict if isinstance(state_dict, dict) else ())
        if missing:
            raise ValueError(
                f"expected the state of a SageSampler, got {type(state_dict).__name__} without "
                f"{', '.join(sorted(missing))}; pass what its state_dict() gave"
            )
        check_same(self._identity(), state_dict["made_for"])
        place, refresher = Place.from_state(state_dict), self._refresher.loaded(state_dict)
        needs_selection = place.has_begun and not self._schedule.is_warming_up(place.epoch)
        if needs_selection and refresher.selection is None:
            raise ValueError(f"expected the selection of epoch {place.epoch} in the state")
        if hasattr(self, "generator") and state_dict["generator"] is not None:
            load_generator(self.generator, state_dict["generator"])
        # A caller that counts epochs names the next one after an epoch has ended.
        has_ended = bool(state_dict["epoch_is_set"]) and place.is_end
        if not (has_ended and self._epoch_is_set):
            self.epoch = place.epoch
        self._epoch_is_set = bool(state_dict["epoch_is_set"])
        self._resumed = place if place.has_begun and not has_ended else None
        self._refresher, self._running = refresher, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": None}  # a loader's iterator's, which stays

    @property
    def _options(self) -> Options:
        return self._refresher.options

    def _begin(self, place: Place | None, *, is_loaded: bool) -> Running:
        """Return the epoch that begins now, or that resumes where an iterator was."""
        resumed = place if is_loaded else self._resumed
        epoch = self.epoch if resumed is None else resumed.epoch
        source, split = self._binding.begin_epoch(self, lambda total: self._length(epoch, total))
        total, selection, kept = count_examples(source.dataset), None, None
        if not self._schedule.is_warming_up(epoch):
            if resumed is not None:
                selection = resumed.selection or self.selection
            if selection is None:
                selection = self._refresher.selection_for(epoch, source)
            self._refresher.check(selection, source)
            # Not counted from the selection: frequent refreshes would draw heads of orders only.
            kept = selection.epoch_indices(epoch - self.warmup_epochs)
        elif resumed is None:
            self._refresher.warm_up(epoch, source)
        order = EpochOrder(
            kept,
            size=total if kept is None else len(kept),
            length=self._length(epoch, total),
            seed=self._name_of_order(resumed),
            epoch=epoch,
            shuffle=self.shuffle,
            split=split,
        )
        position = 0 if resumed is None else resumed.position_in(order)
        self._running = Running(order, selection, position)
        self._resumed = self._named = None
        return self._running

    def _end(self, epoch: int) -> None:
        if not self._epoch_is_set:
            # Where several loaders draw at once, the last to finish must not go back.
            self.epoch = max(self.epoch, epoch + 1)

    def _place(self) -> Place:
        if self._resumed is not None:
            return self._resumed
        if self._running is None or self._running.order.epoch != self.epoch:
            return Place(self.epoch)
        return self._running.place(self.selection)

    def _name_of_order(self, resumed: Place | None) -> int:
        if resumed is not None and resumed.seed is not None:
            return resumed.seed
        if not (self.shuffle and hasattr(self, "generator")):
            return self.seed
        drawn = torch.randint(0, _HIGHEST, (), generator=self.generator, device="cpu")
        return ranks(self._options.distributed).broadcast(int(drawn))

    def _total(self) -> int:
        known = self._binding.known_total
        if known is None and self.selection is not None:
            return len(self.selection.scores)  # no loader holds a copy or a state yet
        return self._binding.total(self) if known is None else known

    def _length(self, epoch: int, total: int) -> int:
        return self._schedule.indices_in(epoch, self._options.budget(total), total)

    def _identity(self) -> dict[str, Any]:
        return {
            "shuffle": bool(self.shuffle),
            "length": self.length,
            "warmup_epochs": self.warmup_epochs,
            "generator": hasattr(self, "generator"),
            "examples": self._binding.known_total,
            **self._refresher.identity(),
        }
