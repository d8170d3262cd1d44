"""Finds a sampler's data set, and its split over ranks, by asking the loaders that hold it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from sage_torch.checks import count_examples
from sage_torch.sampler.epoch_order import Split
from sage_torch.sampler.source import Loaders, Source, given_source, source_of
from sage_torch.sampler.splitters import (
    chain,
    check_lengths,
    check_not_dispatched,
    splitter_of,
)

_T = TypeVar("_T")


class Binding:
    """The data set of a sampler and its split over ranks, as given or as its loaders have them.

    Args:
        dataset: The data set; None for the loaders' data set.
        split: The split; None for the process group's, unless the sampler's holder splits.
        drop_last: Whether the process group's split cuts the order instead of padding it.
    """

    def __init__(
        self, dataset: Dataset[Any] | None, split: Split | None, *, drop_last: bool
    ) -> None:
        self._dataset, self._is_given = dataset, dataset is not None
        self._split, self._drop_last = split, drop_last

    def __getstate__(self) -> dict[str, Any]:
        # A data set found through a loader stays behind: a copy finds its own.
        return self.__dict__ | ({} if self._is_given else {"_dataset": None})

    @property
    def known_total(self) -> int | None:
        """The number of examples, where the data set is known."""
        return None if self._dataset is None else count_examples(self._dataset)

    def total(self, sampler: Sampler[int]) -> int:
        """Return the number of examples N.

        Raises:
            RuntimeError: As `source`.
        """
        return count_examples(self.source(sampler).dataset)

    def source(self, sampler: Sampler[int]) -> Source:
        """Return the data set, and how its loader reads it.

        Raises:
            RuntimeError: No live loader holds the sampler although no data set was given, several
                disagree, or they have another data set than before or than the one given.
        """
        return ask_loaders(sampler, self._source)

    def split(self, sampler: Sampler[int]) -> Split:
        """Return this process's split, which is the whole epoch where the holder splits.

        Raises:
            RuntimeError: Both the holder and the sampler would split.
        """
        if not self._may_be_split():
            return Split()
        return ask_loaders(sampler, self._split_among)

    def begin_epoch(
        self, sampler: Sampler[int], length_of: Callable[[int], int]
    ) -> tuple[Source, Split]:
        """Return source and split; refuse holders that would not read the epoch as it is.

        Args:
            sampler: The sampler.
            length_of: Maps the number of examples to the epoch's number of indices over all ranks.

        Raises:
            RuntimeError: As `source` and `split`; or one process reads for all; or a wrapper has
                fixed its length for another epoch.
        """

        def begin(loaders: Loaders) -> tuple[Source, Split]:
            if _world_size() > 1:
                check_not_dispatched(loaders)
            # Asked again: a loader over another data set must not get indices of this one.
            source = self._source(loaders)
            split = self._split_among(loaders) if self._may_be_split() else Split()
            length = length_of(count_examples(source.dataset))
            check_lengths(loaders, sampler, split.share(length))
            return source, split

        return ask_loaders(sampler, begin)

    def steps(
        self, sampler: Sampler[int], indices: int, batch_size: int, *, drop_last: bool
    ) -> int:
        """Return how many batches this rank gets of an epoch.

        Args:
            sampler: The sampler.
            indices: The epoch's number of indices over all ranks, before any split.
            batch_size: Examples per batch on one rank.
            drop_last: Whether the loader leaves out a last batch that is not full.

        Raises:
            RuntimeError: As `split`.
        """
        splitter = None
        if self._split is None and _world_size() > 1:
            splitter = ask_loaders(sampler, splitter_of)
        if splitter is None:
            indices = self.split(sampler).share(indices)
        elif drop_last and splitter.name == "Accelerate":
            batch_size *= splitter.num_replicas  # it gives each rank whole batches
        else:
            indices = Split(splitter.num_replicas).share(indices)
        return indices // batch_size if drop_last else -(-indices // batch_size)

    def check_readers(self, sampler: Sampler[int]) -> None:
        """Refuse holders where one process reads for all.

        Raises:
            RuntimeError: One does. A selection needs all ranks and would wait forever.
        """
        if _world_size() > 1:
            ask_loaders(sampler, check_not_dispatched)

    def _source(self, loaders: Loaders) -> Source:
        if self._is_given:
            assert self._dataset is not None
            return given_source(self._dataset, loaders)
        source = source_of(loaders)
        dataset = source.dataset
        if self._dataset is None:
            count_examples(dataset)
        elif dataset is not self._dataset:
            raise RuntimeError(
                "expected the data set that this sampler selected from, but a DataLoader over "
                "another one holds it now; make a new SageSampler for it"
            )
        self._dataset = dataset
        return source

    def _may_be_split(self) -> bool:
        return (_world_size() if self._split is None else self._split.num_replicas) > 1

    def _split_among(self, loaders: Loaders) -> Split:
        splitter = splitter_of(loaders)
        if self._split is None:
            if splitter is not None:
                return Split()
            return Split(_world_size(), dist.get_rank(), self._drop_last)
        if splitter is not None and splitter.num_replicas > 1:
            raise RuntimeError(
                f"expected one to split the indices over ranks, but {splitter.name} does so for "
                f"{splitter.num_replicas} and SageSampler for {self._split.num_replicas}: each "
                "rank would see a part of a part; leave num_replicas and rank out"
            )
        return self._split


def ask_loaders(sampler: Sampler[int], question: Callable[[Loaders], _T]) -> _T:
    """Call `question` with the live loaders that draw from `sampler`, and return its answer.

    Looks among live objects, by type, for every `DataLoader` whose `sampler` and `batch_sampler`
    attributes lead to it, and if there is none for the iterators of such loaders. No stack frame is
    read and nothing is patched. If the question raises, it is asked again without the loaders that
    only reference cycles keep: nobody uses those.

    Args:
        sampler: The sampler that the loaders hold.
        question: A function of the list of these loaders, which may be empty.

    Raises:
        RuntimeError: The question raised it twice.

    Cost:
        One walk over the objects that Python's garbage collector tracks: milliseconds.
    """
    try:
        return question(_holders(sampler))
    except RuntimeError:
        pass  # ask again outside: in here, the error would keep the loaders
    gc.collect()
    return question(_holders(sampler))


def _holders(sampler: Sampler[int]) -> Loaders:
    loaders = [each for each in _live(DataLoader) if any(link is sampler for link in chain(each))]
    return loaders or [
        _loader_of(each)
        for each in _live(_SingleProcessDataLoaderIter)
        if any(link is sampler for link in chain(each._index_sampler))
    ]


def _live(kind: type[_T]) -> list[_T]:
    """Return the live objects of a type and of its subclasses."""
    # type(o), not isinstance, which would ask lazy proxies for their __class__ and wake them. Types
    # are compared by id, since a metaclass may have made its classes unhashable.
    kinds = list(_with_subclasses(kind))
    ids = {id(each) for each in kinds}
    referrers = gc.get_referrers(*kinds)  # an object refers to its type
    return [candidate for candidate in referrers if id(type(candidate)) in ids]


def _loader_of(running: _SingleProcessDataLoaderIter) -> DataLoader[Any]:
    """Return a loader like the one that an iterator came from.

    In `for batch in DataLoader(...)`, nobody keeps the loader while its iterator runs.
    """
    dataset, drawn, joins = running._dataset, running._index_sampler, running._collate_fn
    if running._auto_collation:
        return DataLoader(dataset, batch_sampler=drawn, collate_fn=joins)
    return DataLoader(dataset, batch_size=None, sampler=drawn, collate_fn=joins)


def _world_size() -> int:
    is_there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if is_there else 1


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        yield from _with_subclasses(subclass)
