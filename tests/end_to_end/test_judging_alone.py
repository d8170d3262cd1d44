"""A rotation goes by what is known of labels: no gradient and no sketch decides anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from model_state import bits, registered
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from sage_torch import Selection, select_subset
from sage_torch._core import SageError

N, CLASSES = 640, 4
JUDGED = ("probabilities", "is_wrong", "predicted", "label_scores")


class Pooled(nn.Module):
    """Its logits come of a convolution and a mean, not of a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv1d(1, 6, 3), nn.Conv1d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, None]).relu()).mean(2)


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, CLASSES))


def numbers() -> TensorDataset:
    random = torch.Generator().manual_seed(3)
    labels = torch.randint(CLASSES, (N,), generator=random)
    centres = torch.randn(CLASSES, 9, generator=random)
    inputs = centres[labels] + 0.8 * torch.randn(N, 9, generator=random)
    labels[:40] = (labels[:40] + 1) % CLASSES
    return TensorDataset(inputs, labels)


def rotation(model: nn.Module, data: Dataset[Any], **options: Any) -> Selection:
    return select_subset(model, data, 0.25, draw="rotate", progress=False, **options)


class Counting:
    """Joins batches, and counts the examples."""

    def __init__(self) -> None:
        self.examples = 0

    def __call__(self, items: list[Any]) -> Any:
        self.examples += len(items)
        return default_collate(items)


@pytest.mark.parametrize("consensus", ["auto", "streaming"])
@pytest.mark.parametrize(
    ("make", "gradients"), [(linear, "last_layer"), (Pooled, "projected")], ids=["linear", "none"]
)
def test_it_draws_as_with_gradients(
    make: Callable[[], nn.Module], gradients: str, consensus: Any
) -> None:
    torch.manual_seed(0)
    model, data = make(), numbers()
    before = registered(model), bits(model)
    alone = rotation(model, data, consensus=consensus)
    assert (registered(model), bits(model)) == before
    scored = rotation(model, data, gradients=gradients, consensus=consensus)
    for epoch in range(9):
        assert np.array_equal(alone.epoch_indices(epoch), scored.epoch_indices(epoch))
    for name in JUDGED:
        np.testing.assert_allclose(getattr(alone, name), getattr(scored, name), atol=1e-6)
    assert alone.settings["rho"] == pytest.approx(scored.settings["rho"], abs=1e-6)
    assert scored.certificate is not None
    assert np.isfinite(scored.scores).all()
    assert alone.certificate is alone.margins is alone.singular_values is None
    assert np.isnan(alone.scores).all()
    assert "none are taken" in alone.settings["gradients_because"]


@pytest.mark.parametrize("make", [linear, Pooled])
def test_examples_are_read_once_if_their_features_fit(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, data, found = make(), numbers(), []
    width = 12 if make is linear else CLASSES
    for budget, times in ((4 * N * (width + 1), 1), (4 * N * (width + 1) - 1, 2)):
        counting = Counting()
        rotation(model, data, memory_budget=budget, collate_fn=counting)
        few = Counting()
        select_subset(model, data, 0.25, rule="random", collate_fn=few)
        assert few.examples == N
        assert times * N <= counting.examples < times * N + 64  # beside a few, to find the features
        found.append(rotation(model, data, memory_budget=budget))
    for name in ("indices", *JUDGED):
        assert np.array_equal(getattr(found[0], name), getattr(found[1], name))


def test_batches_and_threads_do_not_matter() -> None:
    torch.manual_seed(0)
    model, data = linear(), numbers()
    first = rotation(model, data)
    other = rotation(model, data, batch_size=33, shards=5, num_workers=2)
    assert np.array_equal(first.indices, other.indices)
    np.testing.assert_allclose(first.probabilities, other.probabilities, atol=1e-6)


def test_whoever_needs_coordinates_gets_gradients(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, data = linear(), numbers()
    alone = rotation(model, data)
    wanted: list[dict[str, Any]] = [
        {"keep_coordinates": True}, {"checkpoint": tmp_path / "snapshots"}, {"trim": "negative"}
    ]  # fmt: skip
    for options in wanted:
        found = rotation(model, data, **options)
        assert found.certificate is not None
        if "trim" not in options:
            assert np.array_equal(found.indices, alone.indices)


def test_labels_that_are_no_classes_are_noticed() -> None:
    """They look like classes at first: a few values, and then only new ones."""
    torch.manual_seed(0)
    labels = torch.arange(N)
    labels[:300] = labels[:300] % 3
    data = TensorDataset(numbers().tensors[0], labels)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).square().sum(1)

    found = rotation(linear(), data, loss=loss)
    assert found.settings["classes"] == 0
    assert found.probabilities is None
    assert found.certificate is not None  # gradients after all


def test_an_example_without_finite_features_is_named() -> None:
    data = numbers()
    data.tensors[0][77, 2] = float("nan")
    with pytest.raises(SageError, match="example 77 of the data set") as caught:
        rotation(linear(), data)
    assert caught.value.index == 77


def test_data_that_change_are_noticed() -> None:
    data, counting = numbers(), Counting()

    def changing(items: list[Any]) -> Any:
        inputs, labels = counting(items)
        return inputs, labels if counting.examples < N + 64 else labels.roll(1)

    with pytest.raises(ValueError, match="between the passes"):
        rotation(linear(), data, memory_budget=1_000, collate_fn=changing)


class NoWayBack(torch.autograd.Function):
    """A function that nobody can differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("no backward pass")


class OneWay(Pooled):
    """Its features can be read, and its gradients cannot be taken."""

    def forward(self, x: Tensor) -> Tensor:
        return NoWayBack.apply(super().forward(x))  # type: ignore[no-any-return, no-untyped-call]


def test_a_model_without_gradients_can_be_judged() -> None:
    torch.manual_seed(0)
    model, data = OneWay(), numbers()
    with pytest.raises((RuntimeError, ValueError)):
        select_subset(model, data, 0.25, progress=False)
    assert len(rotation(model, data)) == N // 4
