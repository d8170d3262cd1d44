"""A sampler's data set, and how it is read: as given, or as the loaders that hold it say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from sage_torch.checks import count_examples
from sage_torch.reading.loading import Loading

Loaders = list[DataLoader[Any]]


class Source(NamedTuple):
    """A data set, and how the loader that holds the sampler reads it."""

    dataset: Dataset[Any]
    loading: Loading


def source_of(loaders: Loaders) -> Source:
    """Return the data set of the loaders that draw from a sampler, and how they read it.

    Args:
        loaders: The live loaders that hold it.

    Returns:
        Their one data set, with their one collate function. The one with the most workers says all
        else.

    Raises:
        RuntimeError: There is no loader, or their data sets or collate functions differ.
    """
    if not loaders:
        raise RuntimeError(
            "expected a DataLoader that holds this sampler, found none alive: make one, loader = "
            "DataLoader(dataset, sampler=sampler), and keep it in a variable "
            "(gc.freeze() hides what was made before it); or pass SageSampler(model, dataset, "
            "keep=...)"
        )
    first = loaders[0]
    if any(
        loader.dataset is not first.dataset or loader.collate_fn is not first.collate_fn
        for loader in loaders
    ):
        raise RuntimeError(
            f"expected one data set and one collate function, but {len(loaders)} live DataLoaders "
            "with different ones hold this sampler: use one sampler for each, or pass "
            "SageSampler(model, dataset, keep=...)"
        )
    return Source(first.dataset, Loading.of(_busiest(loaders)))


def given_source(dataset: Dataset[Any], loaders: Loaders) -> Source:
    """Return a sampler's own data set, and how the loaders that draw from the sampler read.

    Args:
        dataset: The data set that the sampler was given.
        loaders: The live loaders that hold the sampler, if any.

    Returns:
        The data set. A loader over another view of it says how many workers read and how they are
        started, but not how the data set is made ready or which function joins its examples.

    Raises:
        RuntimeError: A loader has a data set of another length.
    """
    ours = count_examples(dataset)
    for loader in loaders:
        theirs = _length(loader.dataset)
        if theirs not in (None, ours):
            raise RuntimeError(
                f"expected a DataLoader over the data set of {ours} examples that this sampler was "
                f"given, but one over a data set of {theirs} holds it, where its indices mean "
                "other examples or none; make DataLoader(dataset, sampler=sampler) with the same "
                "data set, or leave it out of SageSampler, which then takes its loader's"
            )
    if not loaders:
        return Source(dataset, Loading())
    own = [loader for loader in loaders if loader.dataset is dataset]
    loading = Loading.of(_busiest(own or loaders))
    if not own:
        loading = replace(loading, worker_init_fn=None)
    if len({id(loader.collate_fn) for loader in own}) != 1:
        loading = replace(loading, collate_fn=None)
    return Source(dataset, loading)


def _busiest(loaders: Loaders) -> DataLoader[Any]:
    return max(loaders, key=lambda loader: loader.num_workers)


def _length(dataset: object) -> int | None:
    try:
        return len(dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return None
