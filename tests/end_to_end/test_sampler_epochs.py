"""What a `SageSampler` yields epoch by epoch: warm-up, draws, and refreshes on the live model."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sage_torch import SageError, SageSampler, Selection, select_subset

both_draws = pytest.mark.parametrize("draw", ["rotate", "random"])


@pytest.fixture
def live() -> nn.Sequential:
    """A classifier of the blobs that tests may change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def train(model: nn.Module, seed: int) -> None:
    """Move the model far, as an epoch of training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)


class Counted:
    """The usual loss, which counts and can be made to fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@both_draws
@pytest.mark.parametrize("rule", ["herding", "random"])
@pytest.mark.parametrize("keep", [0.25, 0.8, 1.0, 7])
def test_each_epoch_yields_what_was_drawn_for_it(
    keep: float, rule: Any, draw: Any, network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(network, blobs, keep=keep, rule=rule, draw=draw)
    k = keep if isinstance(keep, int) else round(keep * 90)
    epochs = []
    for epoch in range(6):
        assert sampler.epoch == epoch
        assert len(sampler) == k
        coming = sampler.indices
        epochs.append(list(sampler))
        assert len(epochs[-1]) == k
        assert sorted(epochs[-1]) == coming.tolist()
        assert sampler.selection is not None
        assert np.array_equal(coming, sampler.selection.epoch_indices(epoch))
    assert np.array_equal(sampler.selection.indices, sorted(epochs[0]))
    assert len(set(map(tuple, epochs))) == 6


def test_a_rotation_through_a_loader_shows_every_example(
    network: nn.Module, blobs: TensorDataset
) -> None:
    numbered = TensorDataset(*blobs.tensors, torch.arange(90))
    sampler = SageSampler(network, keep=0.25, trim=None, draw="rotate", loss=Counted())
    loader = DataLoader(numbered, batch_size=8, sampler=sampler, num_workers=1)
    turn = [torch.cat([batch[2] for batch in loader]).tolist() for _ in range(5)]
    assert [len(epoch) for epoch in turn] == [22] * 5
    seen = np.bincount(np.concatenate(turn), minlength=90)
    assert set(seen) == {1, 2}  # 5 epochs of 22 out of 90, evenly


@both_draws
def test_the_order_is_a_function_of_seed_epoch_and_selection(
    draw: Any, network: nn.Module, blobs: TensorDataset
) -> None:
    def make() -> SageSampler:
        return SageSampler(network, blobs, keep=0.25, draw=draw, seed=2)

    one, same = make(), make()
    epochs = [list(one) for _ in range(8)]
    for epoch in (5, 0, 7, 1, 5):  # the first selection is made for epoch 5, and counts from 0 on
        torch.manual_seed(epoch)
        same.set_epoch(epoch)
        assert list(same) == epochs[epoch]
    far = make()
    far.set_epoch(10**12)
    assert len(list(far)) == 22


@both_draws
def test_without_shuffling_each_epoch_ascends(
    draw: Any, network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(network, blobs, keep=0.25, draw=draw, shuffle=False, warmup_epochs=1)
    assert list(sampler) == list(range(90))
    epochs = [list(sampler) for _ in range(3)]
    assert all(epoch == sorted(epoch) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


@pytest.mark.parametrize("is_given", [False, True])
def test_the_warm_up_yields_all_and_selects_nothing(
    is_given: bool, live: nn.Module, blobs: TensorDataset
) -> None:
    loss = Counted()
    dataset = blobs if is_given else None
    sampler = SageSampler(live, dataset, keep=0.25, loss=loss, warmup_epochs=2)
    loader = DataLoader(blobs, batch_size=8, sampler=sampler)
    orders = []
    for epoch in range(2):
        assert sampler.epoch == epoch
        assert len(sampler) == 90
        assert len(loader) == math.ceil(90 / 8)
        assert sampler.indices.tolist() == list(range(90))
        assert sampler.indices.dtype == np.int64
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(90))
        assert epoch > 0 or loss.calls == 0  # the second one begins with a reading of labels
    assert orders[0] != orders[1]
    assert len(sampler) == 22  # of the coming epoch
    assert len(loader) == 3
    assert sampler.selection is None
    train(live, 1)
    assert sum(len(labels) for _, labels in loader) == 22
    expected = select_subset(live, blobs, 0.25, loss=Counted())
    assert np.array_equal(sampler.indices, expected.indices)


def due_at(warmup: int, every: int | None, epochs: int) -> list[int]:
    return [
        epoch
        for epoch in range(warmup, epochs)
        if epoch == warmup or (every is not None and (epoch - warmup) % every == 0)
    ]


@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("sets_epoch", [False, True])
def test_refreshes_come_on_time_and_see_the_live_model(
    sets_epoch: bool, warmup: int, every: int | None, live: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(
        live, blobs, keep=0.3, draw="rotate", warmup_epochs=warmup, refresh_every=every
    )
    selected: list[int] = []
    last: Selection | None = None
    for epoch in range(6):
        if sets_epoch:
            sampler.set_epoch(epoch)
        assert len(sampler) == (90 if epoch < warmup else 27)
        assert sampler.selection is last  # len() does not select
        drawn = list(sampler)
        if epoch >= warmup:
            assert sampler.selection is not None
            if sampler.selection is not last:
                last = sampler.selection
                selected.append(epoch)
                expected = select_subset(live, blobs, 0.3, draw="rotate")
                assert last.probabilities is not None
                assert expected.probabilities is not None
                is_first = last.settings["readings"] == 1  # later ones are means
                if is_first:
                    assert np.array_equal(last.probabilities, expected.probabilities)
                assert last.settings["readings"] == len(selected)
            assert sorted(drawn) == last.epoch_indices(epoch - warmup).tolist()
        train(live, epoch)
    assert selected == due_at(warmup, every, 6)


@both_draws
@pytest.mark.parametrize("every", [1, 2, 3])
def test_draws_run_on_over_refreshes(
    every: int, draw: Any, live: nn.Module, blobs: TensorDataset
) -> None:
    def epochs(refresh_every: int | None) -> list[list[int]]:
        sampler = SageSampler(
            live,
            blobs,
            keep=0.1,
            trim=None,
            draw=draw,
            warmup_epochs=2,
            refresh_every=refresh_every,
        )
        return [list(sampler) for _ in range(2 + 10)]

    refreshed = epochs(every)
    assert refreshed == epochs(None)  # the model stays, so do its orders: selecting again is unseen
    if draw == "rotate":
        assert set(np.concatenate(refreshed[2:])) == set(
            range(90)
        )  # not the heads of the orders alone


def test_indices_refresh_when_due(live: nn.Module, blobs: TensorDataset) -> None:
    sampler = SageSampler(live, blobs, keep=0.3, refresh_every=1)
    first = sampler.indices
    assert sampler.indices is first  # of draw="fixed", made once
    list(sampler)
    train(live, 1)
    second = sampler.indices
    assert sorted(sampler) == second.tolist()
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no such file")])
def test_a_failed_refresh_keeps_the_last_selection(
    error: BaseException, live: nn.Module, blobs: TensorDataset
) -> None:
    loss = Counted()
    sampler = SageSampler(live, blobs, keep=0.3, loss=loss, draw="rotate", refresh_every=2)
    for _ in range(2):
        list(sampler)
    first = sampler.selection
    train(live, 1)
    loss.error = error
    for _ in range(2):
        with pytest.raises((type(error), SageError)):
            list(sampler)
        assert sampler.selection is first
        assert sampler.epoch == 2
        assert len(sampler) == 27
    sampler.set_epoch(1)  # what the last selection still serves goes on
    assert sorted(sampler) == first.epoch_indices(1).tolist()  # type: ignore[union-attr]
    loss.error = None
    sampler.set_epoch(2)
    assert sorted(sampler) == sampler.selection.epoch_indices(2).tolist()  # type: ignore[union-attr]
    assert sampler.selection is not first


def test_epochs_backwards_and_beyond(live: nn.Module, blobs: TensorDataset) -> None:
    loss = Counted()
    sampler = SageSampler(
        live, blobs, keep=0.3, loss=loss, draw="rotate", warmup_epochs=1, refresh_every=3
    )

    def at(epoch: int) -> tuple[Selection | None, list[int]]:
        sampler.set_epoch(epoch)
        return sampler.selection, sorted(sampler)

    at(9)  # due at epoch 7
    last = sampler.selection
    assert last is not None
    calls = loss.calls
    train(live, 1)
    for epoch in (9, 7, 1, 4, 6):  # earlier selections are gone, and the model that made them too
        assert at(epoch) == (last, last.epoch_indices(epoch - 1).tolist())
    assert at(0) == (last, list(range(90)))
    assert loss.calls == calls
    assert len(sampler) == 90
    at(10)
    assert sampler.selection is not last


def test_selecting_by_hand(live: nn.Module, blobs: TensorDataset) -> None:
    sampler = SageSampler(live, blobs, keep=0.3, draw="rotate", warmup_epochs=2, refresh_every=4)
    early = sampler.select()
    for _ in range(2):
        assert len(list(sampler)) == 90  # the warm-up goes on
    assert sampler.selection is early
    list(sampler)
    on_time = sampler.selection
    assert on_time is not early
    train(live, 1)
    by_hand = sampler.select()  # between epochs 2 and 3
    assert by_hand is sampler.selection
    for epoch in range(3, 6):
        assert sorted(sampler) == by_hand.epoch_indices(epoch - 2).tolist()
        assert sampler.selection is by_hand
    assert sampler.epoch == 6  # due, whatever was done by hand
    list(sampler)
    assert sampler.selection is not by_hand


def test_selecting_by_hand_just_when_it_is_due_is_enough(
    live: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(live, blobs, keep=0.3, warmup_epochs=1, refresh_every=1)
    list(sampler)
    for _ in range(2):
        by_hand = sampler.select()
        list(sampler)
        assert sampler.selection is by_hand


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_where_it_was(
    duplicate: Callable[[SageSampler], SageSampler], live: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(
        live, blobs, keep=0.3, draw="rotate", warmup_epochs=1, refresh_every=3, seed=4
    )
    for _ in range(2):
        list(sampler)
    sampler.select()
    list(sampler)
    again = duplicate(sampler)
    for _ in range(4):  # over a refresh, on equal models
        assert list(again) == list(sampler)


@pytest.mark.parametrize("name", ["warmup_epochs", "refresh_every"])
def test_wrong_numbers_of_epochs_are_refused(
    name: str, network: nn.Module, blobs: TensorDataset
) -> None:
    for wrong in (True, 1.0, np.bool_(True)):
        with pytest.raises(TypeError, match=f"{name} to be a whole number,.* got"):
            SageSampler(network, blobs, keep=0.5, **{name: wrong})  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match=f"{name} to be a whole number.*got '1'"):
        SageSampler(network, blobs, keep=0.5, **{name: "1"})  # type: ignore[arg-type]
    least = int(name == "refresh_every")
    with pytest.raises(ValueError, match=f"{name} of at least {least} .*got {least - 1}"):
        SageSampler(network, blobs, keep=0.5, **{name: least - 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="warmup_epochs"):
        SageSampler(network, blobs, keep=0.5, warmup_epochs=None)  # type: ignore[arg-type]
    numpy = SageSampler(network, blobs, keep=0.5, **{name: np.int32(2)})  # type: ignore[arg-type]
    assert type(getattr(numpy, name)) is int


def test_wrong_epochs_are_refused(network: nn.Module, blobs: TensorDataset) -> None:
    sampler = SageSampler(network, blobs, keep=0.5)
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="epoch to be a whole number"):
            sampler.set_epoch(wrong)  # type: ignore[arg-type]
    for out_of_range in (-1, 2**63):
        with pytest.raises(ValueError, match=f"epoch of at least 0 .* got {out_of_range}"):
            sampler.set_epoch(out_of_range)
    list(sampler)
    assert sampler.epoch == 1  # a refused call does not take the counting over
