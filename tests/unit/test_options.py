"""What is asked for is checked as soon as it can be: before the model or the data is touched."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sage_torch import LastLayerGradients, SageSampler, select_subset
from sage_torch.option_types import SeededOptions
from sage_torch.options import Options

N = 90


class Untouchable(nn.Module):
    """A model that must not be called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        pytest.fail("the model was called before the options were checked")


class Unreadable(Dataset[tuple[Tensor, int]]):
    """A data set that must not be read."""

    def __init__(self, total: int = N) -> None:
        self.total = total

    def __repr__(self) -> str:  # of a test's id
        return f"Unreadable({self.total})"

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pytest.fail("the data set was read before the options were checked")


class Stream(IterableDataset[int]):
    def __repr__(self) -> str:
        return "Stream()"

    def __iter__(self) -> Iterator[int]:
        pytest.fail("the data set was read before the options were checked")


def sample(model: Any, dataset: Any, **options: Any) -> object:
    return SageSampler(model, dataset, **options)


def subset(model: Any, dataset: Any, **options: Any) -> object:
    return select_subset(model, dataset, **options)


entrances = pytest.mark.parametrize("enter", [sample, subset])


@entrances
@pytest.mark.parametrize(
    ("keep", "error"),
    [
        (0.0, ValueError),
        (-0.25, ValueError),
        (1.0000001, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-math.inf, ValueError),
        (np.float64("nan"), ValueError),
        (0, ValueError),
        (-3, ValueError),
        (N + 1, ValueError),
        (True, TypeError),
        (False, TypeError),
        (np.bool_(True), TypeError),
        ("0.25", TypeError),
        (None, TypeError),
        (0.5j, TypeError),
        ([0.5], TypeError),
        (Decimal("0.5"), TypeError),
        (torch.tensor(0.5), TypeError),
    ],
    ids=repr,
)
def test_keep_is_a_share_or_a_count(
    enter: Callable[..., object], keep: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"expected (keep|to keep).*got") as caught:
        enter(Untouchable(), Unreadable(), keep=keep)
    assert str(keep) in str(caught.value)


@entrances
def test_keep_that_rounds_to_nothing(enter: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"keep=0.005 of 90 rounds to 0; keep at least 0.011"):
        enter(Untouchable(), Unreadable(), keep=0.005)


def test_keep_is_compared_with_the_loaders_data_before_the_model_runs() -> None:
    sampler = SageSampler(Untouchable(), keep=N + 1)
    loader = DataLoader(Unreadable(), batch_size=8, sampler=sampler)
    for use in (len, lambda loader: next(iter(loader))):
        with pytest.raises(ValueError, match=f"at most {N} examples.*got keep={N + 1}"):
            use(loader)


@given(st.floats(1e-3, 1.0), st.integers(1, 10_000))
def test_budget_is_the_rounded_share(keep: float, total: int) -> None:
    if round(keep * total):
        assert Options(keep).budget(total) == round(keep * total)
        assert 1 <= Options(keep).budget(total) <= total
    else:
        with pytest.raises(ValueError, match="rounds to 0"):
            Options(keep).budget(total)


@pytest.mark.parametrize(
    ("keep", "k"),
    [
        (0.5, 2),  # 2.5
        (0.3, 2),  # 1.5
        (1.0, 5),
        (1, 1),
        (5, 5),
        (np.float32(0.4), 2),
        (np.int64(3), 3),
        (Fraction(2, 5), 2),
    ],
)
def test_budget_rounds_half_to_even_and_takes_any_number(keep: Any, k: int) -> None:
    assert Options(keep).budget(5) == k


@entrances
@pytest.mark.parametrize(
    ("options", "error", "names"),
    [
        (
            {"rule": "top"},
            ValueError,
            'rule.*"herding", "agreement", "random"',
        ),
        ({"rule": None}, ValueError, "rule"),
        ({"draw": "shuffle"}, ValueError, 'draw.*"fixed", "rotate", "random"'),
        ({"draw": "rotate", "rule": "agreement"}, ValueError, 'rule "herding" or "random".*fixed'),
        ({"draw": "random", "rule": "agreement"}, ValueError, 'rule "herding" or "random"'),
        ({"weights": True}, TypeError, "unknown option 'weights'"),
        ({"rule": "stratified"}, ValueError, 'rule.*"herding", "agreement", "random"'),
        ({"basis": "weighted"}, TypeError, "unknown option 'basis'; expected some of keep, rule"),
        ({"quotas": "same"}, ValueError, 'quotas.*"proportional", "equal"'),
        (
            {"consensus": "stream"},
            ValueError,
            'consensus.*"streaming", "one_pass"',
        ),
        ({"class_balanced": "yes"}, ValueError, "class_balanced"),
        ({"class_balanced": 1}, ValueError, "class_balanced"),
        ({"trim": "positive"}, ValueError, "trim"),
        ({"trim": -0.1}, ValueError, "trim"),
        ({"trim": 1.0}, ValueError, "trim"),
        ({"trim": math.nan}, ValueError, "trim"),
        ({"trim": True}, ValueError, "trim"),
        ({"sketch_size": 0}, ValueError, "sketch_size"),
        ({"sketch_size": 1.5}, TypeError, "sketch_size"),
        ({"sketch_size": True}, TypeError, "sketch_size"),
        ({"gradients": "first_layer"}, ValueError, '"projected", "last_layer".*first_layer'),
        ({"gradients": 3}, TypeError, "gradients"),
        ({"gradients": LastLayerGradients}, TypeError, "LastLayerGradients"),
        ({"compress": 0}, ValueError, "compress"),
        ({"compress": "strong"}, TypeError, "compress"),
        ({"compress": 2.5}, TypeError, "compress"),
        ({"compress": True}, TypeError, "compress"),
        ({"memory_budget": 0}, ValueError, "memory_budget"),
        ({"memory_budget": 1e9}, TypeError, "memory_budget"),
        ({"loss": "cross_entropy"}, TypeError, "loss"),
        ({"collate_fn": 3}, TypeError, "collate_fn"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": None}, TypeError, "batch_size"),
        ({"num_workers": -1}, ValueError, "num_workers"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"seed": 1.0}, TypeError, "seed"),
        ({"seed": None}, TypeError, "seed"),
        ({"kep": 0.5}, TypeError, "kep"),
        ({"sketch_sizes": 8, "trims": None}, TypeError, "sketch_sizes"),
    ],
    ids=repr,
)
def test_wrong_options(
    enter: Callable[..., object], options: dict[str, Any], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=names):
        enter(Untouchable(), Unreadable(), **{"keep": 0.25, **options})


@entrances
@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Stream(), TypeError, "map-style.*IterableDataset Stream.*stream"),
        (Unreadable(0), ValueError, "at least one example"),
        (iter(range(9)), TypeError, "__getitem__ and __len__.*range_iterator"),
        ({1, 2, 3}, TypeError, "__getitem__.*set"),
        (5, TypeError, "int"),
    ],
    ids=["stream", "empty", "iterator", "set", "number"],
)
def test_wrong_data_sets(
    enter: Callable[..., object], dataset: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        enter(Untouchable(), dataset, keep=0.5)


@pytest.mark.parametrize("dataset", [None, Unreadable()])
@pytest.mark.parametrize(
    ("viewed", "error", "message"),
    [
        (Stream(), TypeError, "score_dataset.*IterableDataset Stream"),
        (Unreadable(0), ValueError, "score_dataset.*empty"),
    ],
    ids=["stream", "empty"],
)
def test_wrong_views(
    viewed: Any, error: type[Exception], message: str, dataset: Unreadable | None
) -> None:
    with pytest.raises(error, match=message):
        SageSampler(Untouchable(), dataset, keep=0.5, score_dataset=viewed)


def test_a_view_of_another_length() -> None:
    shorter, message = Unreadable(N - 1), "score_dataset.*90.*got 89"
    with pytest.raises(ValueError, match=message):
        SageSampler(Untouchable(), Unreadable(), keep=0.5, score_dataset=shorter)
    sampler = SageSampler(Untouchable(), keep=0.5, score_dataset=shorter)
    with pytest.raises(ValueError, match=message):  # now the data set is known
        next(iter(DataLoader(Unreadable(), sampler=sampler)))
    with pytest.raises(TypeError, match="unknown option 'score_dataset'"):
        select_subset(Untouchable(), Unreadable(), 0.5, score_dataset=shorter)  # type: ignore[call-arg]


def test_wrong_data_set_of_a_loader() -> None:
    sampler = SageSampler(Untouchable(), keep=0.5)
    loader = DataLoader(Unreadable(0), sampler=sampler)
    with pytest.raises(ValueError, match="at least one example"):
        len(loader)


@entrances
@pytest.mark.parametrize("model", [None, "resnet", nn.Linear, lambda inputs: inputs])
def test_wrong_models(enter: Callable[..., object], model: object) -> None:
    with pytest.raises(TypeError, match=r"model to be a torch.nn.Module"):
        enter(model, Unreadable(), keep=0.5)


def test_select_subset_needs_a_data_set() -> None:
    with pytest.raises(TypeError, match="map-style"):
        select_subset(Untouchable(), None, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("epoch", [-1, "1", None])
def test_wrong_epochs(epoch: Any, network: nn.Module, blobs: TensorDataset) -> None:
    with pytest.raises((ValueError, TypeError)):
        SageSampler(network, blobs, keep=0.5).set_epoch(epoch)


def test_numpy_numbers_are_numbers(network: nn.Module, blobs: TensorDataset) -> None:
    plain = select_subset(network, blobs, 0.25, trim=0.5, sketch_size=8, seed=3)
    numpy = select_subset(
        network,
        blobs,
        np.float32(0.25),  # type: ignore[arg-type]
        trim=np.float32(0.5),  # type: ignore[arg-type]
        sketch_size=np.int64(8),  # type: ignore[arg-type]
        seed=np.int64(3),  # type: ignore[arg-type]
    )
    assert np.array_equal(numpy.indices, plain.indices)
    assert np.array_equal(numpy.scores, plain.scores)
    assert numpy.settings == plain.settings


def test_settings_are_written_as_json(blobs: TensorDataset) -> None:
    options = Options(keep=np.int64(7), loss=F.cross_entropy)
    written = options.as_json()
    assert written["keep"] == 7
    assert type(written["keep"]) is int
    assert written["loss"] == "cross_entropy"
    assert (written["trim"], written["compress"]) == ("auto", "auto")


def test_each_option_is_written_once() -> None:
    """The list for type checkers, the signature and the documentation follow the fields."""
    names = [each.name for each in fields(Options)]
    assert sorted(get_type_hints(SeededOptions)) == sorted(set(names) - {"keep"})
    signature = inspect.signature(select_subset)
    assert list(signature.parameters) == ["model", "dataset", *names]
    for each in fields(Options)[1:]:
        assert signature.parameters[each.name].default == each.default
        assert f"        {each.name}: {each.metadata['help'][:40]}" in (select_subset.__doc__ or "")
    assert len(names) <= 26  # as many as there are: no option comes back by the way
