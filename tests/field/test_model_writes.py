"""A model may write to itself in `forward`: what is the user's stays as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forward_writes import clamp_data, clamp_without_grad, drift, rebind
from model_state import CLASSES, N, bits, kinds, registered, step, vectors
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients, LastLayerGradients, ProjectedGradients


class Renormed(nn.Module):
    """Embeddings that torch shortens in place when they are looked up."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        kind: Any = nn.EmbeddingBag if bag else nn.Embedding
        self.words, self.bag = kind(9, 6, max_norm=0.5), bag
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.words(x) if self.bag else self.words(x).sum(1))


class Written(nn.Module):
    """Writes to a weight at each call."""

    def __init__(self, write: Callable[[nn.Parameter], object]) -> None:
        super().__init__()
        self.first, self.head, self.write = nn.Linear(6, 6), nn.Linear(6, CLASSES), write

    def forward(self, x: Tensor) -> Any:
        self.write(self.first.weight)
        return self.head(torch.tanh(self.first(x)))


WRITES = [clamp_data, clamp_without_grad, rebind, drift]


@kinds
@pytest.mark.parametrize("write", WRITES)
def test_weights_written_in_forward(write: Callable[[nn.Parameter], None], kind: str) -> None:
    torch.manual_seed(0)
    model, data = Written(write), vectors()
    twin = copy.deepcopy(model)
    before, values = registered(model), bits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        select_subset(model, data, 0.5, gradients=kind, batch_size=8, progress=False)
    assert registered(model) == before
    assert bits(model) == values
    assert step(model, data) == step(twin, data)


@pytest.mark.parametrize("computer", [FunctionalGradients, ProjectedGradients, LastLayerGradients])
@pytest.mark.parametrize("bag", [False, True])
def test_max_norm_of_words_that_the_first_batch_does_not_have(bag: bool, computer: Any) -> None:
    torch.manual_seed(0)
    model = Renormed(bag).eval()
    targets = torch.arange(8) % CLASSES
    values, gradients = bits(model), computer(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            model.words.weight[:4] *= 0.01  # short enough to stay as they are
        values = bits(model)
        gradients((torch.randint(4, (8, 3)), targets))
        gradients((torch.randint(9, (8, 3)), targets))
    assert bits(model) == values


@pytest.mark.parametrize("frozen", [False, True])
def test_max_norm_after_a_selection(frozen: bool) -> None:
    torch.manual_seed(0)
    model = Renormed(False)
    model.words.requires_grad_(not frozen)
    data = TensorDataset(torch.randint(9, (N, 3)), torch.arange(N) % CLASSES)
    values = bits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        select_subset(model, data, 0.5, progress=False)
    assert bits(model) == values


class ActNorm(nn.Module):
    """Sets its scale from the first batch that it sees, and remembers that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.is_set, self.calls = nn.Parameter(torch.ones(6)), False, 0
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        if not self.is_set:
            self.scale.data.copy_(1 / x.std(0)) if len(x) > 1 else self.scale.data.fill_(0.5)
            self.is_set = True
        self.calls += 1
        self.last = self.head(x * self.scale)
        return self.last


def test_layer_that_sets_itself_from_the_first_batch() -> None:
    torch.manual_seed(0)
    model, data = ActNorm(), vectors()
    twin = copy.deepcopy(model)
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    values = bits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        select_subset(model, data, 0.5, loss=loss, gradients="last_layer", progress=False)
    assert (model.is_set, model.calls, hasattr(model, "last")) == (False, 0, False)
    assert bits(model) == values
    assert step(model, data) == step(twin, data)


class Restless(nn.Module):
    """Registers hooks, children and parameters while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 5), nn.Linear(5, CLASSES)
        self.first.weight.register_hook(lambda gradient: gradient)

    def forward(self, x: Tensor) -> Any:
        self.first.register_forward_hook(lambda *_: None)
        if self.first.weight.requires_grad:
            self.first.weight.register_hook(lambda gradient: 2 * gradient)
        self.extra = nn.Tanh()
        self.first._parameters["late"] = self.head.weight
        return self.head(self.extra(self.first(x)))


@kinds
def test_what_forward_registers_is_gone_afterwards(kind: str) -> None:
    torch.manual_seed(0)
    model, data = Restless(), vectors()
    before = registered(model)
    hooks = dict(model.first.weight._backward_hooks or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        select_subset(model, data, 0.5, gradients=kind, progress=False)
    assert registered(model) == before
    assert [name for name, _ in model.named_children()] == ["first", "head"]
    assert not model.first._forward_hooks
    assert dict(model.first.weight._backward_hooks or {}) == hooks


class Untouchable(Tensor):
    """A frozen packed weight: once in its model, it can be read, and nothing else."""

    is_packed = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in ("detach", "clone", "copy_", "set_", "requires_grad_") and cls.is_packed:
            raise AssertionError(f"{name} of a packed weight")
        return super().__torch_function__(func, types, args, kwargs or {})


class Adapted(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        packed = torch.randint(-8, 8, (6, 6)).to(dtype).as_subclass(Untouchable)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        base = x @ (self.packed.as_subclass(Tensor).float() / 8)
        return self.head(torch.tanh(base + self.up(self.down(x))))


# Some kinds of quantised weights show the dtype that they are unpacked to.
@kinds
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
@pytest.mark.parametrize("params", [None, "*"])
def test_packed_base_with_trained_adapters(
    kind: str, dtype: torch.dtype, params: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, data = Adapted(dtype), vectors()
    monkeypatch.setattr(Untouchable, "is_packed", True)
    before, expected = registered(model), model(data.tensors[0])
    params = None if kind == "last_layer" else params
    selection = select_subset(model, data, 0.5, gradients=kind, params=params, progress=False)
    assert selection.settings["parameters"]["packed"] == "frozen, left out"
    assert registered(model) == before
    assert torch.equal(model(data.tensors[0]), expected)
