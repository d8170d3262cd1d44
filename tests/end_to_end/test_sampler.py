"""The headline use, literally: a loader with a `SageSampler`, and a training loop as it was."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from sage_torch import SageError, SageSampler, select_subset

Digits = tuple[TensorDataset, TensorDataset]


class Numbered(Dataset[tuple[Tensor, Tensor, int]]):
    """A data set whose examples say their index."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        inputs, label = self.data[index]
        return {"input": inputs, "labels": label, "index": index}


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["input"]), batch["labels"], reduction="none")


def indices_of(loader: Any) -> list[int]:
    return [int(index) for batch in loader for index in batch["index"]]


WORKERS: list[dict[str, Any]] = [
    {"num_workers": 0},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
]


@pytest.mark.parametrize("workers", WORKERS, ids=["here", "workers", "persistent workers"])
def test_the_headline_use(workers: dict[str, Any], network: nn.Module, digits: Digits) -> None:
    ds = Numbered(digits[0])
    model = nn.Linear(64, 10)
    calls: list[object] = []
    model.register_forward_hook(lambda *call: calls.append(call))
    sampler = SageSampler(model, keep=0.25, loss=model_loss)
    loader = DataLoader(ds, batch_size=128, sampler=sampler, **workers)
    assert len(sampler) == round(0.25 * 1437) == 359
    assert len(loader) == 3
    assert not calls
    assert sampler.selection is None
    epochs = [indices_of(loader) for _ in range(3)]
    assert calls
    assert sampler.selection is not None
    kept = sampler.selection.indices.tolist()
    assert len(set(kept)) == len(loader.sampler) == 359  # type: ignore[arg-type]
    assert all(sorted(epoch) == kept for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # each epoch in its own order
    assert len(loader) == len(list(loader)) == 3
    assert model.training
    expected = select_subset(model, ds, 0.25, loss=model_loss)
    assert np.array_equal(expected.indices, kept)


def test_the_training_loop_as_it_was(digits: Digits) -> None:
    train, test = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def train_on(loader: DataLoader[Any], epochs: int) -> int:
        steps = 0
        for _ in range(epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                steps += 1
        return steps

    def accuracy() -> float:
        inputs, targets = test.tensors
        return float((model(inputs).argmax(1) == targets).float().mean())

    train_on(DataLoader(train, batch_size=64, shuffle=True), 1)
    warmed_up = accuracy()
    loader = DataLoader(train, batch_size=64, sampler=SageSampler(model, keep=0.25))
    assert train_on(loader, 15) == 15 * len(loader) == 15 * 6
    trained = accuracy()
    print(f"test accuracy: {warmed_up:.3f}, then on a quarter of the digits {trained:.3f}")
    assert warmed_up < 0.93 < trained


def test_it_yields_python_ints(network: nn.Module, blobs: TensorDataset) -> None:
    yielded = list(SageSampler(network, blobs, keep=0.5))
    assert {type(index) for index in yielded} == {int}


@pytest.mark.parametrize("keep", [1, 7, 0.011, 0.25, 0.5, 0.999, 1.0, 90])
@pytest.mark.parametrize("rule", ["herding", "random"])
@pytest.mark.filterwarnings("ignore:.*gives no example")
def test_len_equals_number_yielded(
    keep: float, rule: Any, network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(network, blobs, keep=keep, rule=rule)
    k = keep if isinstance(keep, int) else round(keep * 90)
    assert len(sampler) == k
    yielded = list(sampler)
    assert len(sampler) == len(yielded) == len(set(yielded)) == k
    assert set(yielded) <= set(range(90))


def test_order_is_a_function_of_seed_and_epoch(network: nn.Module, blobs: TensorDataset) -> None:
    def make(seed: int) -> SageSampler:
        return SageSampler(network, blobs, keep=0.5, seed=seed)

    one, same, other = make(0), make(0), make(1)
    epochs = [list(one) for _ in range(3)]
    for epoch in (2, 0, 1):  # in any order, whatever was drawn before, whatever torch's seed
        torch.manual_seed(epoch)
        same.set_epoch(epoch)
        assert list(same) == epochs[epoch]
        assert list(same) == epochs[epoch]  # from set_epoch on the caller counts
    assert same.epoch == 1
    assert one.epoch == 3
    assert sorted(other) == sorted(epochs[0])  # of so few, herding keeps the same
    other.set_epoch(0)
    assert list(other) != epochs[0]


def test_an_epoch_that_was_not_finished_is_not_counted(
    network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(network, blobs, keep=0.5)
    drawn = iter(sampler)
    started = [next(drawn) for _ in range(3)]
    del drawn
    assert sampler.epoch == 0
    assert list(sampler)[:3] == started
    assert sampler.epoch == 1


def test_several_loaders_at_once(network: nn.Module, blobs: TensorDataset) -> None:
    data = Numbered(blobs)
    sampler = SageSampler(network, keep=0.5, loss=model_loss)
    alone = SageSampler(network, Numbered(blobs), keep=0.2, loss=model_loss)
    first = DataLoader(data, batch_size=5, sampler=sampler)
    second = DataLoader(data, batch_size=10, sampler=sampler)
    third = DataLoader(data, batch_size=5, sampler=alone)
    plain = DataLoader(data, batch_size=5, shuffle=True)
    drawn: list[list[int]] = [[], [], [], []]
    for _ in range(2):
        iterators = [iter(loader) for loader in (first, second, third, plain)]
        for _step in range(18):  # taking turns
            for place, iterator in enumerate(iterators):
                batch = next(iterator, None)
                drawn[place] += [] if batch is None else batch["index"].tolist()
        assert all(next(iterator, None) is None for iterator in iterators)
    assert drawn[0] == drawn[1]  # of one epoch, one order
    assert drawn[0][:45] != drawn[0][45:]
    assert set(Counter(drawn[0]).values()) == {2}
    assert Counter(drawn[2]) == Counter(2 * sorted(alone))
    assert len(set(drawn[2])) == 18
    assert Counter(drawn[3]) == Counter(2 * list(range(90)))
    assert sampler.epoch == 2


def test_the_loaders_collate_function_reads_for_scoring(
    network: nn.Module, blobs: TensorDataset
) -> None:
    class Strings(Dataset[str]):
        def __len__(self) -> int:
            return 90

        def __getitem__(self, index: int) -> str:
            return str(index)

    def collate(names: list[str]) -> dict[str, Tensor]:
        inputs, labels = default_collate([blobs[int(name)] for name in names])
        return {"input": inputs, "labels": labels}

    sampler = SageSampler(network, keep=0.5)  # Sequential.forward calls its argument `input`
    loader = DataLoader(Strings(), batch_size=8, sampler=sampler, collate_fn=collate)
    assert sum(len(batch["labels"]) for batch in loader) == 45
    assert np.array_equal(sampler.indices, select_subset(network, blobs, 0.5).indices)

    def flipped(names: list[str]) -> dict[str, Tensor]:
        batch = collate(names)
        return {**batch, "labels": 2 - batch["labels"]}

    own = SageSampler(network, keep=0.5, collate_fn=flipped)  # one of its own comes first
    loader = DataLoader(Strings(), batch_size=8, sampler=own, collate_fn=collate)
    labels = own.select().labels
    assert np.array_equal(labels, 2 - blobs.tensors[1].numpy())
    assert len(loader) == 6


def test_without_shuffling_indices_ascend(network: nn.Module, blobs: TensorDataset) -> None:
    sampler = SageSampler(network, blobs, keep=0.5, shuffle=False)
    for _ in range(2):
        assert list(sampler) == sampler.indices.tolist() == sorted(sampler.indices)
    shuffled = SageSampler(network, blobs, keep=0.5)
    assert list(shuffled) != sorted(shuffled)


def test_indices_select_once(network: nn.Module, blobs: TensorDataset) -> None:
    sampler = SageSampler(network, blobs, keep=0.5)
    indices = sampler.indices
    first = sampler.selection
    assert first is not None
    assert indices is first.indices
    list(sampler)
    assert sampler.indices is indices
    assert sampler.selection is first
    assert len(Subset(blobs, indices)) == 45  # type: ignore[arg-type]


def test_select_replaces_the_selection(blobs: TensorDataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    sampler = SageSampler(model, blobs, keep=0.3)
    first = sampler.select()
    before = list(sampler)
    running = iter(sampler)
    begun = [next(running)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    second = sampler.select()
    assert second is sampler.selection
    assert set(second.indices.tolist()) != set(first.indices.tolist())
    assert set(sampler) == set(second.indices.tolist())
    assert sorted([*begun, *running]) == sorted(before)  # an epoch under way keeps its subset


@pytest.mark.parametrize("error", [KeyboardInterrupt, SageError])
def test_an_interrupted_second_selection_keeps_the_first(
    error: type[BaseException], network: nn.Module, blobs: TensorDataset
) -> None:
    fails = False

    def loss(model: nn.Module, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        if fails and error is KeyboardInterrupt:
            raise KeyboardInterrupt
        return losses / 0 if fails else losses

    sampler = SageSampler(network, keep=0.5, loss=loss)
    loader = DataLoader(blobs, batch_size=8, sampler=sampler)
    fails = True
    with pytest.raises(error):
        next(iter(loader))
    assert sampler.selection is None
    fails = False
    assert len(list(loader)) == 6
    first = sampler.selection
    fails = True
    with pytest.raises(error):
        sampler.select()
    assert sampler.selection is first
    assert len(list(loader)) == 6


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("is_selected", [False, True])
@pytest.mark.parametrize("is_given", [False, True])
def test_pickling(
    duplicate: Callable[[SageSampler], SageSampler],
    is_selected: bool,
    is_given: bool,
    network: nn.Module,
    blobs: TensorDataset,
) -> None:
    sampler = SageSampler(network, blobs if is_given else None, keep=0.5, seed=3)
    loader = DataLoader(blobs, batch_size=8, sampler=sampler)
    if is_selected:
        list(loader)
    again = duplicate(sampler)
    assert (again.selection is None) == (not is_selected)
    assert again.epoch == sampler.epoch == int(is_selected)
    used_by = DataLoader(blobs, batch_size=8, sampler=again)
    expected = [labels.tolist() for _, labels in loader]
    assert [labels.tolist() for _, labels in used_by] == expected


def test_spawned_workers(network: nn.Module, blobs: TensorDataset) -> None:
    loader = DataLoader(
        blobs,
        batch_size=8,
        sampler=SageSampler(network, keep=0.5),
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert len(loader) == 6
    assert sum(len(labels) for _, labels in loader) == 45


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_of_its_own(num_workers: int, network: nn.Module, blobs: TensorDataset) -> None:
    sampler = SageSampler(network, blobs, keep=0.5, batch_size=7, num_workers=num_workers)
    expected = SageSampler(network, blobs, keep=0.5, batch_size=7)
    assert np.array_equal(sampler.indices, expected.indices)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Each reading is another view, drawn from all three global generators."""

    def __init__(self, blobs: TensorDataset) -> None:
        self.blobs = blobs

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, label = self.blobs[index]
        noise = torch.rand(1) + np.random.rand() + random.random()  # noqa: NPY002
        return inputs * noise.float(), label


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:reading an example again")
def test_the_callers_random_state_changes_nothing(
    num_workers: int, network: nn.Module, blobs: TensorDataset
) -> None:
    kept = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            seed_all(seed)
            kept.append(select_subset(network, Augmented(blobs), 0.5, num_workers=num_workers))
    assert np.array_equal(kept[0].indices, kept[1].indices)
    assert np.array_equal(kept[0].scores, kept[1].scores)


def test_other_loaders_shuffle_as_ever(network: nn.Module, blobs: TensorDataset) -> None:
    def orders(select: Callable[[], object]) -> list[list[float]]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            loader = DataLoader(blobs, batch_size=8, shuffle=True)
            drawn = iter(loader)
            first = [next(drawn)]
            select()  # in the midst of an epoch, and between two
            first.extend(drawn)
            select()
            return [batch[0].flatten().tolist() for batch in [*first, *loader]]

    sampler = SageSampler(network, blobs, keep=0.5)
    assert orders(sampler.select) == orders(lambda: None)
