"""Without a data set of its own, a sampler belongs to the live loader that holds it."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    Sampler,
    TensorDataset,
    default_collate,
)

from sage_torch import SageSampler


@pytest.fixture
def sampler(network: nn.Module) -> SageSampler:
    return SageSampler(network, keep=0.5)


@pytest.fixture
def other(blobs: TensorDataset) -> TensorDataset:
    return TensorDataset(*(tensor[:30] for tensor in blobs.tensors))


USES: list[Callable[[SageSampler], object]] = [
    len,
    list,
    SageSampler.select,
    lambda sampler: sampler.indices,
]
uses = pytest.mark.parametrize("use", USES, ids=["len", "iter", "select", "indices"])


@uses
def test_no_loader(use: Callable[[SageSampler], object], sampler: SageSampler) -> None:
    with pytest.raises(
        RuntimeError, match=r"DataLoader.*found none.*in a variable.*SageSampler\(model, dataset"
    ):
        use(sampler)
    assert sampler.selection is None


@uses
def test_loaders_of_other_samplers_do_not_count(
    use: Callable[[SageSampler], object],
    sampler: SageSampler,
    network: nn.Module,
    blobs: TensorDataset,
) -> None:
    others = [
        DataLoader(blobs, batch_size=4, shuffle=True),
        DataLoader(blobs, batch_size=4, sampler=SageSampler(network, keep=0.5)),
        DataLoader(blobs, batch_size=None),
    ]
    with pytest.raises(RuntimeError, match="found none"):
        use(sampler)
    assert len(others) == 3


@uses
def test_the_one_loader_among_many(
    use: Callable[[SageSampler], object],
    sampler: SageSampler,
    network: nn.Module,
    blobs: TensorDataset,
    other: TensorDataset,
) -> None:
    many = [DataLoader(other, batch_size=4, shuffle=True)]
    many += [DataLoader(other, sampler=SageSampler(network, keep=0.5)) for _ in range(3)]
    many.append(DataLoader(blobs, batch_size=4, sampler=sampler))
    many.append(DataLoader(other))
    use(sampler)
    assert len(sampler) == 45
    assert sum(len(labels) for _, labels in many[4]) == 45


@uses
def test_two_loaders_of_one_data_set(
    use: Callable[[SageSampler], object], sampler: SageSampler, blobs: TensorDataset
) -> None:
    first = DataLoader(blobs, batch_size=4, sampler=sampler)
    second = DataLoader(blobs, batch_size=9, sampler=sampler, drop_last=True)
    use(sampler)
    assert (len(first), len(second)) == (12, 5)


@uses
def test_two_loaders_of_different_data_sets(
    use: Callable[[SageSampler], object],
    sampler: SageSampler,
    blobs: TensorDataset,
    other: TensorDataset,
) -> None:
    loaders = [DataLoader(data, batch_size=4, sampler=sampler) for data in (blobs, other)]
    with pytest.raises(RuntimeError, match=r"2 live DataLoaders.*SageSampler\(model, dataset"):
        use(sampler)
    assert len(loaders) == 2


def another_collate(examples: list[Any]) -> Any:
    return default_collate(examples)


@uses
def test_two_loaders_with_different_collate_functions(
    use: Callable[[SageSampler], object], sampler: SageSampler, blobs: TensorDataset
) -> None:
    loaders = [
        DataLoader(blobs, batch_size=4, sampler=sampler, collate_fn=collate)
        for collate in (default_collate, another_collate)
    ]
    with pytest.raises(RuntimeError, match=r"one collate function.*2 live DataLoaders"):
        use(sampler)
    assert len(loaders) == 2


@uses
def test_a_data_set_of_its_own_needs_no_loader(
    use: Callable[[SageSampler], object], network: nn.Module, blobs: TensorDataset
) -> None:
    own = SageSampler(network, blobs, keep=0.5)
    use(own)
    assert len(own) == 45


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_deleted_loaders_do_not_count(
    in_a_cycle: bool, sampler: SageSampler, blobs: TensorDataset, other: TensorDataset
) -> None:
    gone = DataLoader(other, batch_size=4, sampler=sampler)
    if in_a_cycle:  # as a trainer and its loader that know each other
        gone.trainer = types.SimpleNamespace(loader=gone)  # type: ignore[attr-defined]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        del gone
        loader = DataLoader(blobs, batch_size=4, sampler=sampler)
        assert len(sampler) == 45
        assert sum(len(labels) for _, labels in loader) == 45
    finally:
        if was_enabled:
            gc.enable()


@pytest.mark.parametrize("is_selected", [False, True])
def test_rebinding_to_another_data_set(
    is_selected: bool, sampler: SageSampler, blobs: TensorDataset, other: TensorDataset
) -> None:
    loader = DataLoader(blobs, batch_size=4, sampler=sampler)
    if is_selected:
        sampler.select()
    assert len(loader) == 12
    first = sampler.selection
    del loader
    loader = DataLoader(other, batch_size=4, sampler=sampler)
    for use in (lambda: next(iter(loader)), sampler.select):
        with pytest.raises(RuntimeError, match="data set that this sampler selected from"):
            use()
    assert sampler.selection is first


def test_a_new_loader_of_the_same_data_set(sampler: SageSampler, blobs: TensorDataset) -> None:
    loader = DataLoader(blobs, batch_size=4, sampler=sampler)
    first = {tuple(row.tolist()) for inputs, _ in loader for row in inputs}
    del loader
    loader = DataLoader(blobs, batch_size=7, sampler=sampler, drop_last=True)
    second = {tuple(row.tolist()) for inputs, _ in loader for row in inputs}
    assert len(second) == 42
    assert second < first


class Wrapped(Sampler[int]):
    """A user's sampler around ours."""

    def __init__(self, sampler: Sampler[int]) -> None:
        self.sampler = sampler

    def __iter__(self) -> Any:
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


class Loader(DataLoader[Any]):
    """A user's kind of loader."""


@pytest.mark.parametrize("kind", [DataLoader, Loader])
@pytest.mark.parametrize(
    ("hold", "steps"),
    [
        (lambda sampler: {"sampler": sampler, "batch_size": 8}, 6),
        (lambda sampler: {"sampler": sampler, "batch_size": None}, 45),
        (lambda sampler: {"sampler": Wrapped(sampler), "batch_size": 8}, 6),
        (lambda sampler: {"batch_sampler": BatchSampler(sampler, 8, False)}, 6),
        (lambda sampler: {"batch_sampler": BatchSampler(Wrapped(Wrapped(sampler)), 8, True)}, 5),
        (lambda sampler: {"sampler": BatchSampler(sampler, 8, False), "batch_size": None}, 6),
    ],
    ids=["sampler", "no batches", "wrapped", "batch sampler", "wrapped twice", "sampled batches"],
)
def test_ways_to_hold_a_sampler(
    hold: Callable[[SageSampler], dict[str, Any]],
    steps: int,
    kind: type[DataLoader[Any]],
    sampler: SageSampler,
    blobs: TensorDataset,
) -> None:
    loader = kind(blobs, **hold(sampler))
    assert len(loader) == steps
    labels = [labels for _, labels in loader]
    assert len(labels) == steps
    assert sum(label.numel() for label in labels) == (40 if steps == 5 else 45)


class Asleep:
    """Wakes when anybody asks what it is, as lazily imported modules and proxies do."""

    woken: list[str]

    def __init__(self) -> None:
        self.__dict__["woken"] = []

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        self.__dict__["woken"].append("__class__")
        raise RuntimeError("woken")

    def __getattr__(self, name: str) -> Any:
        self.__dict__["woken"].append(name)
        raise RuntimeError("woken")


@uses
def test_lazy_objects_are_not_woken(
    use: Callable[[SageSampler], object], sampler: SageSampler, blobs: TensorDataset
) -> None:
    asleep = Asleep()
    assert any(found is asleep for found in gc.get_objects())
    with pytest.raises(RuntimeError, match="woken"):
        isinstance(asleep, Dataset)  # as a careless search would
    woken = asleep.__dict__["woken"]
    woken.clear()
    loader = DataLoader(blobs, batch_size=4, sampler=sampler)
    use(sampler)
    assert not woken
    assert len(loader) == 12


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_loader_that_nobody_keeps(
    workers: int, batch_size: int | None, network: nn.Module, blobs: TensorDataset
) -> None:
    """In `for batch in DataLoader(...)`, only its iterator lives on."""
    asked = SageSampler(network, keep=0.5, draw="rotate", warmup_epochs=1, progress=False)
    seen = []
    for _ in range(3):
        count = 0
        for inputs, _ in DataLoader(
            blobs, batch_size=batch_size, sampler=asked, num_workers=workers
        ):
            count += 1 if batch_size is None else len(inputs)
        seen.append(count)
    assert seen == [90, 45, 45]
    assert asked.selection is not None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [30, 90, 120])
def test_a_loader_over_other_data_that_nobody_keeps(
    workers: int, count: int, network: nn.Module, blobs: TensorDataset
) -> None:
    longer = [tensor.repeat(2, *[1] * (tensor.ndim - 1)) for tensor in blobs.tensors]
    data = TensorDataset(*(tensor[:count] for tensor in longer))
    given = SageSampler(network, blobs, keep=0.5, progress=False)

    def epoch() -> int:
        return sum(
            len(inputs)
            for inputs, _ in DataLoader(data, batch_size=8, sampler=given, num_workers=workers)
        )

    if count == len(blobs):  # another view of the same examples
        assert epoch() == 45
        return
    with pytest.raises(RuntimeError, match=f"but one over a data set of {count} holds it"):
        epoch()
