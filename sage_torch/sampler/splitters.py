"""Finds who holds a sampler and splits its indices over ranks, from public attributes.

A framework is looked up among the modules already imported: this module imports none.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, Sampler

_ACCELERATE = "accelerate.data_loader"


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Gives each rank its part of a sampler's indices, so that the sampler must not.

    Attributes:
        name: For error messages, as `"Accelerate"`.
        num_replicas: Number of parts; 1 where all ranks see the same examples.
        reads_on_one_process: Whether one process iterates and sends batches to the others.
    """

    name: str
    num_replicas: int
    reads_on_one_process: bool = False


def chain(loader: object) -> Iterator[object]:
    """Yield a loader and everything that its indices pass through, however samplers are wrapped.

    Follows the attributes `sampler` and `batch_sampler`. A `DistributedSampler` calls a wrapped
    sampler its data set: there, it follows `dataset` and below that `sampler` or `_sampler`.

    Args:
        loader: A `DataLoader`, maybe one that is still under construction.
    """
    waiting, seen = [loader], set()
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, DistributedSampler):
            waiting += _in_data_set(link)
        else:  # one under construction does not have its attributes yet
            waiting += [getattr(link, name, None) for name in ("sampler", "batch_sampler")]


def splitter_of(loaders: Sequence[DataLoader[Any]]) -> Splitter | None:
    """Return the splitter over ranks of a sampler that `loaders` hold; None if there is none.

    Args:
        loaders: The live loaders that hold the sampler.

    Cost:
        Where an Accelerator was made, one walk over the objects that Python's garbage collector
        tracks: milliseconds; tens of milliseconds with 500,000 objects.
    """
    for loader in loaders:
        for link in chain(loader):
            if _is_accelerate(link, "BatchSamplerShard"):
                return Splitter(name="Accelerate", num_replicas=link.num_processes)  # type: ignore[attr-defined]
            if isinstance(link, DistributedSampler):
                return Splitter(name=type(link).__name__, num_replicas=link.num_replicas)
    prepared = _prepared(loaders)
    for holder in prepared:
        if _is_accelerate(holder, "DataLoaderDispatcher"):
            processes = holder.state.num_processes
            return Splitter(name="Accelerate", num_replicas=processes, reads_on_one_process=True)
    # It prepared the loader and split nothing: all ranks should see the same examples.
    return Splitter(name="Accelerate", num_replicas=1) if prepared else None


def check_not_dispatched(loaders: Sequence[DataLoader[Any]]) -> None:
    """Refuse loaders where one of several processes reads for all.

    Args:
        loaders: The live loaders that hold a sampler.

    Raises:
        RuntimeError: Accelerate's `dispatch_batches=True` is set on several processes. A selection
            needs all ranks and would wait forever.
    """
    splitter = splitter_of(loaders)
    if splitter is not None and splitter.reads_on_one_process and splitter.num_replicas > 1:
        raise RuntimeError(
            f"expected every one of {splitter.num_replicas} processes to read its own batches, but "
            "dispatch_batches=True makes one process read for all; pass Accelerator("
            "dataloader_config=DataLoaderConfiguration(dispatch_batches=False))"
        )


def check_lengths(loaders: Sequence[DataLoader[Any]], sampler: Sampler[int], count: int) -> None:
    """Refuse a `DistributedSampler` around the sampler that would cut, pad or misread its epoch.

    Args:
        loaders: The live loaders that hold the sampler.
        sampler: The sampler that is about to yield indices.
        count: How many indices it yields in this epoch.

    Raises:
        RuntimeError: The wrapper has fixed its length for another number of indices, or yields
            places in the sampler, which it takes for a data set.
    """
    for loader in loaders:
        for link in chain(loader):
            if not isinstance(link, DistributedSampler):
                continue
            dataset: object = link.dataset
            if dataset is sampler:
                raise RuntimeError(
                    f"expected to be iterated, but {type(link).__name__}(sampler) yields places 0, "
                    f"1, ... of {type(sampler).__name__} instead of its indices; hand the sampler "
                    "itself to the DataLoader: it splits its indices over ranks"
                )
            leads = any(inner is sampler for inner in chain(link))
            if leads and link.num_samples != _share(link, count):
                raise RuntimeError(
                    f"expected {type(link).__name__} to have {_share(link, count)} examples for "
                    f"each of {link.num_replicas} ranks this epoch, got {link.num_samples}: it "
                    "fixes its length when it is made and would pad or cut each epoch to it. Hand "
                    f"{type(sampler).__name__} itself to the DataLoader, it splits its indices "
                    "over ranks; with Lightning, Trainer(use_distributed_sampler=False)"
                )


def _share(wrapper: DistributedSampler[Any], count: int) -> int:
    """Return how many of `count` examples a `DistributedSampler` gives each rank."""
    left = count % wrapper.num_replicas
    if wrapper.drop_last and left:
        count -= wrapper.num_replicas
    return math.ceil(count / wrapper.num_replicas)


def _in_data_set(wrapper: DistributedSampler[Any]) -> list[object]:
    """Return the sampler in what a `DistributedSampler` calls its data set, if there is one.

    Reads only the instance's own attributes: a real data set may do work for others.
    """
    dataset: object = wrapper.dataset
    if isinstance(dataset, Sampler):
        return [dataset]
    own = getattr(dataset, "__dict__", {})
    return [own.get("sampler"), own.get("_sampler")]


def _is_accelerate(link: object, name: str) -> bool:
    module = sys.modules.get(_ACCELERATE)
    return module is not None and isinstance(link, getattr(module, name))


def _prepared(loaders: Sequence[DataLoader[Any]]) -> list[Any]:
    """Return Accelerate's loaders around these: they claim to be `DataLoader`s and are not."""
    module = sys.modules.get(_ACCELERATE)
    if module is None or not sys.modules["accelerate.state"].is_initialized():
        return []
    kinds = list(_with_subclasses(module.DataLoaderAdapter))
    ids, ours = {id(kind) for kind in kinds}, {id(loader) for loader in loaders}
    return [
        candidate
        for candidate in gc.get_referrers(*kinds)  # an object refers to its type
        if id(type(candidate)) in ids and id(vars(candidate).get("base_dataloader")) in ours
    ]


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        yield from _with_subclasses(subclass)
