"""A sampler's state, saved with a plain `DataLoader`: nothing twice, nothing lost."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sage_torch import SageSampler
from sage_torch.sampler.epoch_iterator import as_tensor, from_tensor

State = dict[str, Any]


class Loss:
    """The usual loss, which counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def loss() -> Loss:
    return Loss()


@pytest.fixture
def make(network: nn.Module, blobs: TensorDataset, loss: Loss) -> Callable[..., SageSampler]:
    def make(**options: Any) -> SageSampler:
        given: Any = {"keep": 0.25, "loss": loss, "progress": False, **options}
        return SageSampler(network, blobs, **given)

    return make


def saved(state: State) -> State:
    """Return the state as it comes back from a file, without any code in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: State = torch.load(file, weights_only=True)
    return loaded


VARIANTS: list[dict[str, Any]] = [
    {},
    {"warmup_epochs": 2},
    {"warmup_epochs": 1, "draw": "rotate", "refresh_every": 2},
    {"length": "fixed", "shuffle": False, "seed": np.int64(3)},
    {"length": "fixed", "num_replicas": 2, "rank": 1},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("stop", [0, 5, 22])
def test_resume_mid_epoch(
    stop: int, options: dict[str, Any], make: Callable[..., SageSampler], loss: Loss
) -> None:
    through = make(**options)
    expected = [list(through) for _ in range(4)]
    sampler = make(**options)
    assert list(sampler) == expected[0]
    running = iter(sampler)
    begun = [next(running) for _ in range(stop)]
    state = saved(sampler.state_dict())
    calls = loss.calls
    again = make(**options)
    again.load_state_dict(state)
    assert again.epoch == sampler.epoch
    if sampler.epoch == 1:  # an epoch that is over is followed by the next
        assert state["epoch"] == 1
        assert state["position"] == stop
        assert len(again) == len(expected[1])  # of the whole epoch
        if stop:
            assert begun + list(again) == expected[1]
            assert loss.calls == calls  # nothing was selected again
        else:
            assert list(again) == expected[1]
    else:
        assert begun == expected[1]
        assert state["epoch"] == 2
    come = again.epoch
    assert [list(again) for _ in range(come, 4)] == expected[come:]


def test_resuming_twice_within_an_epoch(make: Callable[..., SageSampler]) -> None:
    expected = list(make())
    yielded: list[int] = []
    state = make().state_dict()
    while len(yielded) < 22:
        sampler = make()
        sampler.load_state_dict(saved(state))
        running = iter(sampler)
        yielded += [next(running) for _ in range(min(5, 22 - len(yielded)))]
        state = sampler.state_dict()
    assert yielded == expected
    assert sampler.epoch == 1


def test_the_state_after_a_break_is_where_it_broke(make: Callable[..., SageSampler]) -> None:
    sampler, expected = make(), list(make())
    for place, _index in enumerate(sampler):
        if place == 6:
            break
    state = saved(sampler.state_dict())
    assert state["position"] == 7
    assert list(sampler) == expected  # here, the epoch begins anew
    again = make()
    again.load_state_dict(state)
    assert list(again) == expected[7:]


def test_a_state_taken_before_anything(make: Callable[..., SageSampler], loss: Loss) -> None:
    state = make().state_dict()
    assert loss.calls == 0
    again = make()
    again.load_state_dict(saved(state))
    assert list(again) == list(make())


def test_a_loaded_position_goes_on_through_every_door(make: Callable[..., SageSampler]) -> None:
    sampler, expected = make(), list(make())
    running = iter(sampler)
    begun = [next(running) for _ in range(9)]
    state = saved(sampler.state_dict())
    again = make()
    again.load_state_dict(state)
    assert again.state_dict()["position"] == 9  # saved again before anything is drawn
    third = make()
    third.load_state_dict(saved(again.state_dict()))
    abandoned = iter(third)  # loaders make iterators that they never draw from
    assert begun + list(third) == expected
    del abandoned


def test_an_iterator_has_a_state_of_its_own(make: Callable[..., SageSampler]) -> None:
    sampler, expected = make(), list(make())
    running = iter(sampler)
    assert running.state_dict()["epoch"] is None
    begun = [next(running) for _ in range(4)]
    state = saved(running.state_dict())
    for loads in (1, 2):  # positions are counted from the epoch's start
        other = iter(sampler)
        for _ in range(loads):
            other.load_state_dict(state)
        assert other.state_dict()["position"] == 4
        assert begun + list(other) == expected
    rest = list(running)
    assert begun + rest == expected
    over = iter(make())
    over.load_state_dict(saved(running.state_dict()))
    assert list(over) == []
    fresh = iter(sampler)
    fresh.load_state_dict({"epoch": None, "position": 0, "order": None})
    assert len(list(fresh)) == 22


def test_selecting_by_hand_does_not_change_the_epoch_that_is_resumed(
    make: Callable[..., SageSampler], network: nn.Module
) -> None:
    sampler, expected = make(), list(make())
    running = iter(sampler)
    begun = [next(running) for _ in range(4)]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    second = sampler.select()
    assert set(second.indices.tolist()) != set(expected)
    again = make()
    again.load_state_dict(saved(sampler.state_dict()))
    assert begun + list(again) == expected
    assert sorted(again) == second.indices.tolist()


def test_the_selection_comes_back_whole(make: Callable[..., SageSampler]) -> None:
    sampler = make(draw="rotate")
    first = sampler.select()
    again = make(draw="rotate")
    again.load_state_dict(saved(sampler.state_dict()))
    assert again.selection is not None
    assert np.array_equal(again.selection.scores, first.scores, equal_nan=True)
    assert np.array_equal(again.selection.epoch_indices(3), first.epoch_indices(3))


def test_a_generator_comes_back(make: Callable[..., SageSampler]) -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    through = make(generator=generator(5))
    expected = [list(through) for _ in range(3)]
    assert len({tuple(epoch) for epoch in expected}) == 3
    sampler = make(generator=generator(5))
    list(sampler)
    running = iter(sampler)
    begun = [next(running) for _ in range(6)]
    own = generator(0)
    again = make(generator=own)
    again.load_state_dict(saved(sampler.state_dict()))
    assert again.generator is own  # given, and never replaced
    assert begun + list(again) == expected[1]
    assert list(again) == expected[2]


def test_who_counts_the_epochs(make: Callable[..., SageSampler]) -> None:
    through = make()
    expected = [list(through) for _ in range(4)]

    def resumed(state: State, *names: int) -> SageSampler:
        sampler = make()
        for name in names:
            sampler.set_epoch(name)
        sampler.load_state_dict(saved(state))
        return sampler

    sampler = make()
    sampler.set_epoch(1)
    running = iter(sampler)
    begun = [next(running) for _ in range(6)]
    middle = sampler.state_dict()
    rest = list(running)
    over = sampler.state_dict()
    assert begun + rest == expected[1]
    again = resumed(middle)
    again.set_epoch(1)  # the epoch that is under way: it goes on
    assert list(again) == rest
    assert list(again) == expected[1]  # the caller counts, so it comes again
    again = resumed(middle)
    again.set_epoch(2)  # another one
    assert list(again) == expected[2]
    assert list(resumed(middle, 0)) == rest
    # The epoch was over: whoever counts names the next, before loading or after.
    assert list(resumed(over, 2)) == expected[2]
    again = resumed(over)
    again.set_epoch(3)
    assert list(again) == expected[3]


def test_frameworks_that_skip_batches_set_epoch_and_position(
    make: Callable[..., SageSampler], loss: Loss
) -> None:
    sampler = make(refresh_every=1)
    expected = [list(sampler) for _ in range(2)]
    running = iter(sampler)
    expected.append([next(running), *running])
    calls = loss.calls
    state = saved(sampler.state_dict())
    for position in (0, 8):
        again = make(refresh_every=1)
        again.load_state_dict({**state, "epoch": 2, "position": position})
        assert list(again) == expected[2][position:]
        assert loss.calls == calls
    again = make(refresh_every=1)
    again.load_state_dict({**state, "epoch": 2, "position": 24})  # counted in whole batches
    assert list(again) == []
    assert again.epoch == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "sampler with seed=1, got that of one with seed=0"),
        ({"keep": 22}, r"keep=22, got .* keep=0\.25"),
        ({"keep": 0.3}, r"keep=0\.3, got .* keep=0\.25"),
        ({"shuffle": False}, "shuffle=False, got"),
        ({"length": "fixed"}, "length='fixed', got"),
    ],
)
def test_states_of_other_samplers_are_refused(
    options: dict[str, Any], message: str, make: Callable[..., SageSampler]
) -> None:
    sampler = make()
    list(sampler)
    other = make(**options)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(sampler.state_dict())
    assert other.selection is None
    assert other.epoch == 0


def test_another_data_set_is_refused(
    make: Callable[..., SageSampler], network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = make()
    running = iter(sampler)
    next(running)
    state = saved(sampler.state_dict())
    small = TensorDataset(*(tensor[:60] for tensor in blobs.tensors))
    given = SageSampler(network, small, keep=0.25, progress=False)
    with pytest.raises(ValueError, match="examples=60, got that of one with examples=90"):
        given.load_state_dict(state)
    found = SageSampler(network, keep=0.25, progress=False)
    found.load_state_dict(state)  # before any loader holds it
    assert len(found) == 22
    loader = DataLoader(small, sampler=found)
    with pytest.raises(RuntimeError, match="of 90 examples that the selection was made from"):
        next(iter(loader))
    assert len(loader.dataset) == 60  # type: ignore[arg-type]


def test_another_number_of_ranks_is_refused(make: Callable[..., SageSampler]) -> None:
    sampler = make(num_replicas=2, rank=0)
    running = iter(sampler)
    next(running)
    again = make(num_replicas=3, rank=0)
    again.load_state_dict(sampler.state_dict())
    with pytest.raises(RuntimeError, match=r"on 2 ranks with 11 indices each, got 3 with 8"):
        next(iter(again))
    list(running)
    again.load_state_dict(sampler.state_dict())  # between epochs it may change
    assert len(list(again)) == 8


def damaged(state: State) -> list[Any]:
    order, selection = state["order"], from_tensor(state["selection"])
    fewer = replace(selection, indices=selection.indices[:-1])
    bytes_of = state["selection"].clone()
    bytes_of[len(bytes_of) // 2 :] = 0
    changes: list[dict[str, Any]] = [
        {"epoch": -1},
        {"epoch": "1"},
        {"position": 1.5},
        {"position": None},
        {"order": 3},
        {"order": {**order, "total": -1}},
        {"order": {"epoch": state["epoch"]}},
        {"order": {**order, "selection": bytes_of}},
        {"selection": bytes_of},
        {"selection": as_tensor(fewer)},
        {"selection": None},
        {"selection": bytes_of[:0]},
        {"selection": torch.ones(3)},
        {"since": None},
        {"made_for": None},
        {"made_for": {}},
        {"generator": torch.ones(3)},
        {"generator": "none"},
    ]
    wrong: list[Any] = [{**state, **change} for change in changes]
    wrong += [{key: state[key] for key in state if key != left_out} for left_out in state]
    return [*wrong, None, [], {}, state["selection"]]


def test_bad_states_change_nothing(make: Callable[..., SageSampler]) -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(2)

    sampler = make(generator=generator())
    running = iter(sampler)
    begun = [next(running) for _ in range(3)]
    good = sampler.state_dict()
    for wrong in damaged(good):
        before = copy.deepcopy(sampler.state_dict())
        with pytest.raises(ValueError, match=r"expected|readable"):
            sampler.load_state_dict(wrong)
        after = sampler.state_dict()
        assert {key: str(value) for key, value in after.items()} == {
            key: str(value) for key, value in before.items()
        }
    again = make(generator=generator())
    again.load_state_dict(good)
    assert begun + list(again) == begun + list(running)


@pytest.mark.parametrize("wrong", [None, 3, {}, {"epoch": 1}, {"epoch": 0, "position": 1}])
def test_bad_states_of_an_iterator_change_nothing(
    wrong: Any, make: Callable[..., SageSampler]
) -> None:
    running = iter(make())
    begun = [next(running) for _ in range(3)]
    with pytest.raises(ValueError, match="expected"):
        running.load_state_dict(wrong)
    assert begun + list(running) == list(make())
