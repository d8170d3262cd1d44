"""Which data set a sampler belongs to: that of the live `DataLoader` that holds it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from sage_torch.options import Collate


def find_loader(sampler: Sampler[int]) -> tuple[Dataset[Any], Collate | None]:
    """Return the data set and collate function of the loaders that draw from `sampler`.

    Looks among live objects, by type, for every `DataLoader` whose public `sampler` and
    `batch_sampler` attributes lead to it; no stack frame is read and nothing is patched.

    Args:
        sampler: The sampler that wants to know.

    Returns:
        Their one data set, and their one collate function (None where the loader makes no batches
        of its own).

    Raises:
        RuntimeError: No live loader holds the sampler, or several with different data sets or
            collate functions do.

    Cost:
        One walk over the objects that Python's garbage collector tracks: milliseconds.
    """
    loaders = _holders(sampler)
    if not _agree(loaders):
        loaders = []  # or this list would keep them all
        gc.collect()  # a loader that only a reference cycle keeps is nobody's
        loaders = _holders(sampler)
    if not loaders:
        raise RuntimeError(
            "expected a DataLoader that holds this sampler, found none alive: make one, loader = "
            "DataLoader(dataset, sampler=sampler), and keep it in a variable while you iterate; or "
            "pass SageSampler(model, dataset, keep=...)"
        )
    if not _agree(loaders):
        raise RuntimeError(
            f"expected one data set and one collate function, but {len(loaders)} live DataLoaders "
            "with different ones hold this sampler: use one sampler for each, or pass "
            "SageSampler(model, dataset, keep=...)"
        )
    first = loaders[0]
    makes_batches = first.batch_sampler is not None
    return first.dataset, first.collate_fn if makes_batches else None


def _holders(sampler: Sampler[int]) -> list[DataLoader[Any]]:
    # type(o), not isinstance: that would ask lazy proxies for their __class__ and wake them. By id,
    # since a metaclass may have made its classes unhashable.
    kinds = {id(kind) for kind in _with_subclasses(DataLoader)}
    return [
        candidate
        for candidate in gc.get_objects()
        if id(type(candidate)) in kinds and _leads_to(candidate, sampler)
    ]


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        yield from _with_subclasses(subclass)


def _agree(loaders: list[DataLoader[Any]]) -> bool:
    return all(
        loader.dataset is loaders[0].dataset and loader.collate_fn is loaders[0].collate_fn
        for loader in loaders
    )


def _leads_to(loader: DataLoader[Any], sampler: Sampler[int]) -> bool:
    return any(link is sampler for link in _chain(loader))


def _chain(start: object) -> Iterator[object]:
    """Follow `sampler` and `batch_sampler` attributes, however samplers are wrapped."""
    waiting, seen = [start], set()
    while waiting:
        link = waiting.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        for name in ("sampler", "batch_sampler"):
            # A loader under construction does not have its attributes yet.
            following = getattr(link, name, None)
            if following is not None:
                waiting.append(following)
