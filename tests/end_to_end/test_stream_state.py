"""A stream that was cut off goes on with the same decisions."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from streams import Repeated, WithState, without_places
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sage_torch.stream import SageStream

Digits = tuple[TensorDataset, TensorDataset]
Warm = Callable[[], nn.Module]


@pytest.fixture
def make(digits: Digits, warm: Warm) -> Callable[..., SageStream]:
    def made(source: Repeated | None = None, **options: Any) -> SageStream:
        options = {"warm_up": 300, "batch_size": 128, "sketch_size": 16} | options
        options = {"gradients": "last_layer", "collate_fn": without_places} | options
        return SageStream(warm(), Repeated(digits[0]) if source is None else source, **options)

    return made


def saved(stream: Any) -> Any:
    """Return its state after a round trip through a file, as plain as torch wants it."""
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def places(stream: SageStream) -> list[int]:
    return [place for *_, place in stream]


@pytest.mark.parametrize("rule", ["agreement", "random"])
def test_a_state_goes_on_with_the_same_decisions(
    make: Callable[..., SageStream], rule: str
) -> None:
    whole = places(make(rule=rule))
    for stop in (0, 1, 40, 150, len(whole) - 1, len(whole)):
        stream = make(rule=rule)
        reading = iter(stream)
        first = [place for *_, place in itertools.islice(reading, stop)]
        state = saved(stream)
        assert first + [place for *_, place in reading] == whole
        other = make(rule=rule)
        other.load_state_dict(state)
        assert first + places(other) == whole
        assert (other.seen, other.kept) == (1_437, len(whole))
        assert places(other)[:5] == places(stream)[:5]  # and the reading after it is the same


def test_it_goes_on_again_and_again(make: Callable[..., SageStream]) -> None:
    whole, found, state = places(make()), list[int](), None
    while True:
        stream = make()
        if state is not None:
            stream.load_state_dict(state)
        part = [place for *_, place in itertools.islice(stream, 50)]
        found += part
        state = saved(stream)
        if len(part) < 50:
            break
    assert found == whole


def test_a_stream_with_a_state_is_not_read_again(
    make: Callable[..., SageStream], digits: Digits
) -> None:
    whole = places(make())
    stream = make(WithState(digits[0]))
    first = [place for *_, place in itertools.islice(stream, 150)]
    state = saved(stream)
    places(stream)  # whatever the stream does to its own state
    source = WithState(digits[0])
    other = make(source)
    other.load_state_dict(state)
    assert first + places(other) == whole
    assert 0 < source.given < 1_437 - 400
    assert source.given % 128 == 1_437 % 128  # from the start of the current batch on


def test_workers_go_on_too(make: Callable[..., SageStream]) -> None:
    whole = places(make(num_workers=2))
    stream = make(num_workers=2)
    first = [place for *_, place in itertools.islice(stream, 100)]
    other = make(num_workers=2)
    other.load_state_dict(saved(stream))
    assert first + places(other) == whole


def test_a_stateful_loader_goes_on(make: Callable[..., SageStream]) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    whole = [batch.tolist() for *_, batch in DataLoader(make(), batch_size=32)]
    loader = stateful.StatefulDataLoader(make(), batch_size=32)
    first = [batch.tolist() for *_, batch in itertools.islice(loader, 5)]
    state = copy.deepcopy(loader.state_dict())
    other = stateful.StatefulDataLoader(make(), batch_size=32)
    other.load_state_dict(state)
    assert first + [batch.tolist() for *_, batch in other] == whole


def test_a_pickled_stream_goes_on(make: Callable[..., SageStream]) -> None:
    stream = make()
    places(stream)
    other = pickle.loads(pickle.dumps(stream))
    assert places(other) == places(stream)
    assert places(copy.deepcopy(stream)) == places(stream)


def test_a_state_can_be_loaded_in_the_middle(make: Callable[..., SageStream]) -> None:
    stream = make()
    reading = iter(stream)
    first = [next(reading)[-1] for _ in range(60)]
    state = saved(stream)
    second = [next(reading)[-1] for _ in range(60)]
    stream.load_state_dict(state)
    with pytest.raises(RuntimeError, match="a state has been loaded"):
        next(reading)
    assert [place for *_, place in itertools.islice(stream, 60)] == second != first


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": 0.5}, "keep=0.5, got 0.25"),
        ({"rule": "agreement"}, "rule='agreement', got 'random'"),
        ({"batch_size": 64}, "batch_size=64, got 128"),
        ({"sketch_size": 8}, "sketch_size=8, got 16"),
        ({"seed": 1}, "seed=1, got 0"),
        ({"half_life": 10}, "half_life=10, got 'auto'"),
        ({"gradients": "functional"}, "of the same model"),
    ],
)
def test_a_state_of_other_options_is_refused(
    make: Callable[..., SageStream], options: dict[str, Any], match: str
) -> None:
    stream = make()
    next(iter(stream))
    other = make(**options)
    with pytest.raises(ValueError, match=match):
        other.load_state_dict(stream.state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        {"scores": {}},
        {"rate": {}},
        {"rate": None},
        {"settings": None},
        {"read": -1},
        {"given": 1.5},
        {"is_kept": [True]},
        {"is_kept": torch.ones(3)},
        {"rate": {"draws": torch.zeros(3)}},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(
    make: Callable[..., SageStream], damage: dict[str, Any]
) -> None:
    stream, twin = make(), make()
    for one in (stream, twin):
        for _ in itertools.islice(one, 150):
            pass
    with pytest.raises(ValueError, match="expected"):
        stream.load_state_dict(stream.state_dict() | damage)
    assert places(stream) == places(twin)


@pytest.mark.parametrize("state", [None, {}, {"keep": 1}])
def test_what_is_no_state_is_refused(make: Callable[..., SageStream], state: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a state from SageStream.state_dict\(\)"):
        make().load_state_dict(state)


def test_a_stream_that_has_changed_since_is_refused(
    make: Callable[..., SageStream], digits: Digits
) -> None:
    stream = make()
    for _ in itertools.islice(stream, 150):
        pass
    state = saved(stream)
    for count, match in ((200, "to give again the"), (state["read"] + 5, "the batch of 128")):
        other = make(Repeated(digits[0], order=torch.arange(count)))
        other.load_state_dict(state)
        with pytest.raises(RuntimeError, match=match):
            places(other)
