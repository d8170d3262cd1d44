"""Models that vmap refuses: the loop takes over, and its gradients are the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from microbatches import (
    CLASSES,
    SERIES,
    VECTORS,
    Checkpointed,
    N,
    assert_rows,
    by_microbatches,
    cross_entropy,
    make,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sage_torch.gradients import (
    FunctionalGradients,
)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.recurrent = kind(6, 5, batch_first=True)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.recurrent(x)[0][:, -1])


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        logits = torch.zeros(len(x), CLASSES, dtype=x.dtype)
        logits[:] = self.last(x)
        return logits


class Branching(InPlace):
    def forward(self, x: Tensor) -> Any:
        logits: Tensor = self.last(x)
        return logits if x.isfinite().all() else 2 * logits


REFUSED: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("gru", lambda: Recurrent(nn.GRU), SERIES),
    ("in place", InPlace, VECTORS),
    ("branching", Branching, VECTORS),
    ("checkpoint", lambda: Checkpointed(reentrant=False), VECTORS),
    ("reentrant checkpoint", lambda: Checkpointed(reentrant=True), VECTORS),
]


@pytest.mark.parametrize(
    ("build", "shape"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_vmap_refuses_is_looped_over(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, batch = make(build, shape)
    gradients = FunctionalGradients(model)
    with pytest.warns(UserWarning, match=r"one backward pass per example.*Cause: \S.*") as caught:
        rows = gradients(batch)
    assert len([w for w in caught if "Cause" in str(w.message)]) == 1
    assert "\n" not in str(caught[0].message)
    expected = by_microbatches(model, cross_entropy, batch)
    assert_rows(rows, expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "one backward pass per example" in gradients.describe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_rows(gradients(batch), expected)  # the loop is kept, the warning is not repeated


def test_lstm_equals_microbatches() -> None:
    # Some kernels of the LSTM run under vmap and some do not: either way must be exact.
    model, batch = make(lambda: Recurrent(nn.LSTM), SERIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = FunctionalGradients(model)(batch)
    assert_rows(rows, by_microbatches(model, cross_entropy, batch))
    before = model(batch[0])
    with torch.backends.mkldnn.flags(enabled=False), pytest.warns(UserWarning, match="Cause"):
        rows = FunctionalGradients(model)(batch)
    assert_rows(rows, by_microbatches(model, cross_entropy, batch))
    assert torch.equal(before, model(batch[0]))


@pytest.mark.parametrize("names", [["first.weight", "block.0.bias"], ["block.0.weight"]])
def test_loop_honours_the_choice_of_parameters(names: list[str]) -> None:
    model, batch = make(lambda: Checkpointed(reentrant=True), VECTORS)
    gradients = FunctionalGradients(model, params=names)
    with pytest.warns(UserWarning, match="Cause"):
        rows = gradients(batch)
    assert_rows(rows, by_microbatches(model, cross_entropy, batch, names))


def test_reentrant_checkpoint_of_an_input_that_requires_grad() -> None:
    class FromInput(Checkpointed):
        def forward(self, x: Tensor) -> Any:
            return self.last(checkpoint(self.block, x, use_reentrant=True))

    model, (inputs, targets) = make(lambda: FromInput(reentrant=True), VECTORS)
    inputs.requires_grad_()
    expected = by_microbatches(model, cross_entropy, (inputs, targets))
    inputs.grad = None
    for given in (inputs, inputs.exp().log()):  # a leaf, and one with a history
        with pytest.warns(UserWarning, match="Cause"):
            rows = FunctionalGradients(model)((given, targets))
        assert_rows(rows, expected)
        assert inputs.grad is None


def test_sparse_embedding_gradients() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(11, 5, sparse=True)
    model = nn.Sequential(embedding, nn.Flatten(), nn.Linear(20, CLASSES)).eval()
    batch = (torch.randint(11, (N, 4)), torch.randint(CLASSES, (N,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = FunctionalGradients(model)(batch)
    dense = copy.deepcopy(model)
    assert isinstance(dense[0], nn.Embedding)
    dense[0].sparse = False
    assert_rows(rows, by_microbatches(dense, cross_entropy, batch))


def test_loss_module_keeps_its_own_gradients() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, model: nn.Module, batch: Any) -> Tensor:
            return self.scale * cross_entropy(model, batch)

    model, batch = make(lambda: Checkpointed(reentrant=True), VECTORS)
    expected = 2 * by_microbatches(model, cross_entropy, batch)
    module = Scaled()
    for loss in (module, lambda model, batch: module(model, batch)):
        for kept in (None, torch.tensor(5.0)):
            module.scale.grad = kept
            with pytest.warns(UserWarning, match="vmap cannot differentiate"):
                rows = FunctionalGradients(model, loss)(batch)
            assert_rows(rows, expected)
            assert module.scale.grad is kept
            assert kept is None or kept == 5
