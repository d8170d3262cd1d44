"""torchdata's `StatefulDataLoader` resumes a sampler's epochs exactly, wherever it was stopped."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import SageSampler

StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

EPOCHS = 3
calls: list[int] = []  # of the loss: what a selection costs
workers = pytest.mark.parametrize(
    "workers",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}],
    ids=["here", "workers", "persistent workers"],
)
Make = Callable[..., tuple[SageSampler, Any]]


def loss(model: nn.Module, batch: Any) -> Tensor:
    calls.append(1)
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def make(network: nn.Module, blobs: TensorDataset) -> Make:
    """Make a sampler that finds its data set, and the loader that holds it."""
    numbered = TensorDataset(*blobs.tensors, torch.arange(90))

    def make(workers: dict[str, Any], **options: Any) -> tuple[SageSampler, Any]:
        loader = {"batch_size": 5, **workers}
        for name in ("batch_size", "snapshot_every_n_steps"):
            if name in options:
                loader[name] = options.pop(name)
        given: Any = {"keep": 0.25, "loss": loss, "progress": False, **options}
        sampler = SageSampler(network, **given)
        return sampler, StatefulDataLoader(numbered, sampler=sampler, **loader)

    return make


@pytest.fixture
def expected(make: Make) -> Callable[..., list[list[int]]]:
    """The epochs without any interruption."""

    def expected(**options: Any) -> list[list[int]]:
        options = {key: value for key, value in options.items() if "snapshot" not in key}
        options.pop("batch_size", None)
        sampler, loader = make({}, **options)
        return [list(sampler) for _ in range(EPOCHS) if loader]

    return expected


def numbers(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch[2]]


def saved(loader: Any) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_size": 11},  # whose last batch is full
    {"warmup_epochs": 1, "refresh_every": 1, "draw": "rotate", "snapshot_every_n_steps": 2},
]


@workers
@pytest.mark.parametrize("options", OPTIONS, ids=["", "full batches", "refreshes"])
def test_resume_anywhere(
    options: dict[str, Any],
    workers: dict[str, Any],
    make: Make,
    expected: Callable[..., list[list[int]]],
) -> None:
    epochs = expected(**options)
    steps = -(-22 // options.get("batch_size", 5))
    stops = {2, steps} if workers else {0, 2, steps - 1, steps}
    for stop in stops:  # batches of epoch 1
        _, loader = make(workers, **options)
        assert numbers(loader) == epochs[0]
        reading = iter(loader)
        begun = numbers(islice(reading, stop))
        state = saved(loader)
        del reading
        made = len(calls)
        _, loader = make(workers, **options)
        loader.load_state_dict(state)
        assert begun + numbers(loader) == epochs[1]
        if not options.get("refresh_every"):
            assert len(calls) == made  # nothing was selected again
        assert [numbers(loader) for _ in range(2, EPOCHS)] == epochs[2:]


@workers
def test_resume_twice_within_an_epoch(
    workers: dict[str, Any], make: Make, expected: Callable[..., list[list[int]]]
) -> None:
    yielded: list[int] = []
    sampler, loader = make(workers)
    for _ in range(3):
        reading = iter(loader)
        yielded += numbers(next(reading) for _ in range(1))
        state = saved(loader)
        del reading
        sampler, loader = make(workers)
        loader.load_state_dict(state)
    yielded += numbers(loader)
    assert [yielded, numbers(loader)] == expected()[:2]
    assert sampler.epoch == 2


@workers
def test_no_epoch_is_lost_at_a_boundary(
    workers: dict[str, Any], make: Make, expected: Callable[..., list[list[int]]]
) -> None:
    for batch_size in (11,) if workers else (5, 11):
        epochs = []
        _, loader = make(workers, batch_size=batch_size)
        for _ in range(EPOCHS):
            epochs.append(numbers(loader))
            state = saved(loader)
            _, loader = make(workers, batch_size=batch_size)
            loader.load_state_dict(state)
        assert epochs == expected()


@workers
def test_callers_that_set_the_epoch(
    workers: dict[str, Any], make: Make, expected: Callable[..., list[list[int]]]
) -> None:
    epochs = expected()
    for batch_size in (11,) if workers else (5, 11):
        sampler, loader = make(workers, batch_size=batch_size)
        sampler.set_epoch(1)
        reading = iter(loader)
        begun = numbers([next(reading)])
        middle = saved(loader)
        rest = numbers(reading)
        assert begun + rest == epochs[1]
        over = saved(loader)
        sampler, loader = make(workers, batch_size=batch_size)
        loader.load_state_dict(middle)
        sampler.set_epoch(1)
        assert numbers(loader) == rest
        sampler.set_epoch(2)
        assert numbers(loader) == epochs[2]
        sampler, loader = make(workers, batch_size=batch_size)
        loader.load_state_dict(over)
        sampler.set_epoch(2)  # before the loader passes the state on, at its first batch
        assert numbers(loader) == epochs[2]
        sampler, loader = make(workers, batch_size=batch_size)
        loader.load_state_dict(middle)
        sampler.set_epoch(2)  # another than the one that it was in: from its start
        assert numbers(loader) == epochs[2]
        assert sampler.epoch == 2
        # After the last batch, before the loader was asked for one more.
        sampler, loader = make(workers, batch_size=batch_size)
        sampler.set_epoch(1)
        reading = iter(loader)
        for _ in range(len(loader)):
            next(reading)
        at_the_end = saved(loader)
        sampler, loader = make(workers, batch_size=batch_size)
        loader.load_state_dict(at_the_end)
        sampler.set_epoch(2)
        assert numbers(loader) == epochs[2]
