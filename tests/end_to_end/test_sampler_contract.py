"""What a `torch.utils.data.Sampler` owes whoever holds it, in each loader and kind of worker."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, TensorDataset

from sage_torch import SageSampler

StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

loaders = pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
workers = pytest.mark.parametrize(
    "workers",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
    ],
    ids=["here", "workers", "persistent workers"],
)


class Numbered(Dataset[Any]):
    """Examples that say their index, and in which process they were read."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        inputs, label = self.data[index]
        return inputs, label, index, int(multiprocessing.parent_process() is not None)


def loss(model: nn.Module, batch: Any) -> Tensor:
    assert multiprocessing.parent_process() is None  # a worker never selects
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def make(network: nn.Module) -> Callable[..., SageSampler]:
    def make(dataset: Any = None, **options: Any) -> SageSampler:
        given: Any = {"keep": 0.25, "loss": loss, "progress": False, **options}
        return SageSampler(network, dataset, **given)

    return make


def random_states() -> list[Any]:
    numpy = np.random.get_state()[1]  # noqa: NPY002
    return [torch.get_rng_state().tolist(), numpy.tolist(), random.getstate()]  # type: ignore[index]


@loaders
@workers
def test_a_loader_of_any_kind(
    kind: type[DataLoader[Any]],
    workers: dict[str, Any],
    make: Callable[..., SageSampler],
    blobs: TensorDataset,
) -> None:
    data = Numbered(blobs)
    sampler = make(warmup_epochs=1, refresh_every=lambda epoch: epoch == 2, draw="rotate")
    # Its own generator: loaders draw their workers' seeds from the global one.
    loader = kind(data, batch_size=8, sampler=sampler, generator=torch.Generator(), **workers)
    before = random_states()
    plain = make(data, warmup_epochs=1, draw="rotate")
    for epoch in range(4):
        expected = list(plain)
        assert len(sampler) == len(expected) == (90 if epoch == 0 else 22)  # before it is selected
        assert len(loader) == -(-len(expected) // 8) == sampler.steps_per_epoch(epoch, 8)
        last = sampler.selection
        batches = list(loader)
        assert [int(index) for batch in batches for index in batch[2]] == expected
        assert all(batch[3].all() == bool(workers) for batch in batches)
        assert (sampler.selection is not last) == (epoch in (1, 2))
        assert len(batches) == -(-len(expected) // 8)
    assert random_states() == before
    assert sampler.epoch == 4


@loaders
def test_an_abandoned_loop_changes_nothing(
    kind: type[DataLoader[Any]], make: Callable[..., SageSampler], blobs: TensorDataset
) -> None:
    sampler = make()
    loader = kind(Numbered(blobs), batch_size=2, sampler=sampler, num_workers=1)
    first = next(iter(loader))[2].tolist()
    selection = sampler.selection
    assert sampler.epoch == 0
    again = [batch[2].tolist() for batch in loader]
    assert again[0] == first
    assert sampler.selection is selection
    assert sampler.epoch == 1


def test_a_generator_names_the_orders(
    make: Callable[..., SageSampler], blobs: TensorDataset
) -> None:
    def orders(seed: int, **options: Any) -> list[list[int]]:
        sampler = make(blobs, generator=torch.Generator().manual_seed(seed), **options)
        return [list(sampler) for _ in range(3)]

    before = random_states()
    first = orders(1)
    assert orders(1) == first
    assert random_states() == before
    others = orders(2)
    assert all(one != other for one, other in zip(first, others, strict=True))
    assert sorted(first[0]) == sorted(others[0])  # the subset is the seed's
    assert len({tuple(one) for one in first}) == 3
    generator = torch.Generator().manual_seed(1)
    sampler = make(blobs, generator=generator)
    abandoned = iter(sampler)
    assert list(sampler) == first[0]  # what never began has drawn nothing
    assert sampler.generator is generator
    assert sampler.generator.get_state().ne(torch.Generator().get_state()).any()
    del abandoned
    unshuffled = orders(1, shuffle=False)
    assert unshuffled == [sorted(first[0])] * 3


def test_without_a_generator_there_is_no_such_attribute(make: Callable[..., SageSampler]) -> None:
    assert not hasattr(make(), "generator")  # frameworks replace one that is None
    assert not hasattr(SageSampler, "generator")


@pytest.mark.parametrize("wrong", [3, "cpu", torch.Generator])
def test_wrong_generators_are_refused(wrong: Any, make: Callable[..., SageSampler]) -> None:
    with pytest.raises(TypeError, match=r"generator to be a CPU torch\.Generator"):
        make(generator=wrong)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_in_the_midst_of_an_epoch(
    duplicate: Callable[[SageSampler], SageSampler],
    make: Callable[..., SageSampler],
    blobs: TensorDataset,
) -> None:
    sampler = make(blobs, generator=torch.Generator().manual_seed(4), draw="rotate")
    list(sampler)
    running = iter(sampler)
    begun = [next(running) for _ in range(3)]
    again = duplicate(sampler)
    epoch = list(again)
    assert epoch == list(sampler)
    whole = [*begun, *running]
    assert sorted(epoch) == sorted(whole)
    assert epoch != whole  # the generator has gone on


@pytest.mark.slow
def test_memory_of_an_epoch(make: Callable[..., SageSampler]) -> None:
    many = TensorDataset(torch.zeros(3_000_000, 1))
    sampler = make(many, warmup_epochs=1)
    for epoch, most in ((0, 10_000_000), (1, 16_000_000)):  # 8 bytes an index kept
        sampler = make(many, keep=0.25, warmup_epochs=1, rule="random", class_balanced=False)
        sampler.set_epoch(epoch)
        selected = sampler.indices if epoch else None  # what making it needs is not the question
        tracemalloc.start()
        try:
            running = iter(sampler)
            for _ in range(10):
                next(running)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < most
        assert (selected is None) == (epoch == 0)
    assert len(pickle.dumps(make(many, warmup_epochs=1).state_dict())) < 2_000


def test_steps_for_learning_rate_schedules(
    make: Callable[..., SageSampler], blobs: TensorDataset
) -> None:
    sampler = make(blobs, warmup_epochs=2)
    counted = []
    for epoch in range(5):
        loader = DataLoader(blobs, batch_size=8, sampler=sampler)
        short = DataLoader(blobs, batch_size=8, sampler=sampler, drop_last=True)
        assert sampler.steps_per_epoch(epoch, 8) == len(loader)
        assert sampler.steps_per_epoch(epoch, 8, drop_last=True) == len(short)
        counted.append(sum(1 for _ in loader))
    assert counted == [12, 12, 3, 3, 3]
    assert [sampler.total_steps(epochs, 8) for epochs in range(6)] == [0, 12, 24, 27, 30, 33]
    assert sampler.total_steps(5, 8, drop_last=True) == 11 * 2 + 2 * 3
    assert make(blobs, num_replicas=2, rank=0, warmup_epochs=1).total_steps(3, 8) == 6 + 2 + 2
    fixed = make(blobs, length="fixed", warmup_epochs=1)
    assert fixed.total_steps(5, 8) == 60
    for wrong in (0, 2.5):
        with pytest.raises((TypeError, ValueError), match="batch_size"):
            sampler.steps_per_epoch(0, wrong)  # type: ignore[arg-type]


def test_fixed_length(make: Callable[..., SageSampler], blobs: TensorDataset) -> None:
    sampler = make(length="fixed")
    loader = DataLoader(blobs, batch_size=8, sampler=sampler)
    assert len(sampler) == 90
    first, second = list(sampler), list(sampler)
    assert len(first) == len(second) == 90
    assert sampler.selection is not None
    kept = sampler.selection.indices.tolist()
    for epoch in (first, second):
        parts = [epoch[start : start + 22] for start in range(0, 88, 22)]
        assert all(sorted(part) == kept for part in parts)
        assert len({tuple(part) for part in parts}) == 4
    assert sampler.indices.tolist() == kept
    assert len(loader) == 12


def test_a_split_that_was_given(make: Callable[..., SageSampler], blobs: TensorDataset) -> None:
    alone = list(make(blobs))
    parts = [list(make(blobs, num_replicas=3, rank=rank)) for rank in range(3)]
    assert [len(part) for part in parts] == [8, 8, 8]
    assert [index for step in zip(*parts, strict=True) for index in step] == alone + alone[:2]
    cut = [make(blobs, num_replicas=3, rank=rank, drop_last=True) for rank in range(3)]
    assert [len(sampler) for sampler in cut] == [7, 7, 7]
    assert len({index for sampler in cut for index in sampler}) == 21
    none = make(blobs, keep=2, num_replicas=3, rank=0, drop_last=True, class_balanced=False)
    assert list(none) == []
    assert none.epoch == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 1}, ValueError, "num_replicas and rank, or neither"),
        ({"num_replicas": 2}, ValueError, "num_replicas and rank, or neither"),
        ({"num_replicas": 2, "rank": 2}, ValueError, "rank below num_replicas=2"),
        ({"num_replicas": 0, "rank": 0}, ValueError, "num_replicas of at least 1"),
        ({"num_replicas": 2.0, "rank": 0}, TypeError, "num_replicas to be a whole number"),
        ({"length": "full"}, ValueError, "length to be"),
    ],
)
def test_wrong_splits_are_refused(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    make: Callable[..., SageSampler],
) -> None:
    with pytest.raises(error, match=message):
        make(**options)


class Wrapper(DistributedSampler[Any]):
    """A sampler around another, as frameworks make them: its length is fixed when it is made."""

    def __init__(self, sampler: SageSampler, rank: int = 0) -> None:
        super().__init__(range(len(sampler)), num_replicas=2, rank=rank)  # type: ignore[arg-type]
        self.dataset = copy.copy(WrappedIndices(sampler))  # type: ignore[assignment]

    def __iter__(self) -> Any:
        indices = list(self.dataset.sampler)  # type: ignore[attr-defined]
        return iter((indices + indices[:1])[self.rank : self.total_size : 2])


class WrappedIndices:
    def __init__(self, sampler: SageSampler) -> None:
        self.sampler = sampler


def test_wrappers_with_a_stale_length_are_refused(
    make: Callable[..., SageSampler], blobs: TensorDataset
) -> None:
    sampler = make(blobs, warmup_epochs=1)
    loader = DataLoader(blobs, sampler=Wrapper(sampler), batch_size=8)
    assert sum(len(labels) for _, labels in loader) == 45  # of the warm-up it is right
    with pytest.raises(RuntimeError, match=r"Wrapper to have 11 .*got 45: .*SageSampler itself"):
        list(loader)
    del loader
    loader = DataLoader(blobs, sampler=Wrapper(sampler), batch_size=8)
    assert sum(len(labels) for _, labels in loader) == 11


def test_splitting_twice_is_refused(make: Callable[..., SageSampler], blobs: TensorDataset) -> None:
    sampler = make(blobs, num_replicas=2, rank=0)
    wrapper = Wrapper(sampler)
    loader = DataLoader(blobs, batch_sampler=BatchSampler(wrapper, 8, False))
    for use in (lambda: list(loader), lambda: len(sampler)):
        with pytest.raises(RuntimeError, match="Wrapper does so for 2 and SageSampler for 2"):
            use()
    assert sampler.selection is None
    one = make(blobs, num_replicas=1, rank=0)  # is no split
    loader = DataLoader(blobs, sampler=Wrapper(one))
    assert len(list(loader)) == 11


def test_each_selection_has_a_checkpoint_of_its_own(
    make: Callable[..., SageSampler], blobs: TensorDataset, tmp_path: Path, network: nn.Module
) -> None:
    sampler = make(blobs, checkpoint=tmp_path, warmup_epochs=1, refresh_every=2)
    found = []
    for epoch in range(4):
        list(sampler)
        found.append([folder.name for folder in tmp_path.iterdir()])
        with torch.no_grad():  # the model goes on
            network[0].weight += 0.1 * (epoch + 1)  # type: ignore[index, operator]
    assert found == [[], ["sage-epoch-00000001"], ["sage-epoch-00000001"], ["sage-epoch-00000003"]]
    by_hand = [sampler.select()]
    with torch.no_grad():
        network[0].weight += 1.0  # type: ignore[index, operator]
    by_hand.append(sampler.select())  # not that of the model of before
    assert not np.array_equal(by_hand[0].scores, by_hand[1].scores)
    resumed = make(blobs, checkpoint=tmp_path, warmup_epochs=1, refresh_every=2)
    resumed.set_epoch(4)
    assert np.array_equal(resumed.select().scores, by_hand[1].scores)


def test_training_again_makes_another_selection_of_the_epoch(
    make: Callable[..., SageSampler], blobs: TensorDataset, tmp_path: Path, network: nn.Module
) -> None:
    mine = tmp_path / "epoch-0"
    mine.mkdir()
    (mine / "model.pt").write_text("the user's")
    first = make(blobs, checkpoint=tmp_path, refresh_every=1)
    list(first)
    with torch.no_grad():  # trained again from an earlier state, and rounded otherwise
        network[0].weight += 1e-4  # type: ignore[index, operator]
    again = make(blobs, checkpoint=tmp_path, refresh_every=1)
    with pytest.warns(UserWarning, match="selecting anew: .*another model"):
        list(again)
    assert again.selection is not None
    with pytest.raises(ValueError, match="other options"):  # that is no matter of training
        list(make(blobs, checkpoint=tmp_path, sketch_size=3))
    list(again)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "epoch-0",
        "sage-epoch-00000001",
    ]
    assert (mine / "model.pt").exists()
