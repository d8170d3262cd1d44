"""No gradient as long as a weight exists; where memory runs out the chunk is halved, once."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import assert_rows, cross_entropy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import case

from sage_torch.gradients import ProjectedGradients

INPUTS, TARGETS = torch.randn(12, 6), torch.arange(12) % 3


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Memory:
    """A loss that takes no more than so many examples at once."""

    def __init__(self, examples: int, error: Exception | None = None) -> None:
        self.examples, self.seen = examples, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.seen.append(len(batch[0]))
        if len(batch[0]) > self.examples:
            raise self.error
        return cross_entropy(model, batch)


EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=["device", "host"])
@pytest.mark.parametrize("first", [True, False], ids=["first batch", "later batch"])
def test_chunk_is_halved_once_with_a_warning(error: Exception, first: bool) -> None:
    model = network()
    expected = ProjectedGradients(model, 4)((INPUTS, TARGETS))
    memory = Memory(6, error)
    gradients = ProjectedGradients(model, 4, memory)
    if not first:
        gradients((INPUTS[:6], TARGETS[:6]))
    with pytest.warns(UserWarning, match=r"out of memory with 12 examples.*6") as caught:
        rows = gradients((INPUTS, TARGETS))
    assert len([w for w in caught if "memory" in str(w.message)]) == 1
    assert_rows(rows, expected)
    memory.seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_rows(gradients((INPUTS, TARGETS)), expected)  # the smaller chunk is kept
    assert max(memory.seen) <= 6


@pytest.mark.parametrize("error", EXHAUSTED, ids=["device", "host"])
def test_running_out_of_memory_twice_raises(error: Exception) -> None:
    model = network()
    model[0].weight.grad = kept = torch.ones(5, 6)
    gradients = ProjectedGradients(model, 4, Memory(4, error))
    with pytest.warns(UserWarning, match="memory"), pytest.raises(type(error), match="memory"):
        gradients((INPUTS, TARGETS))
    assert model[0].weight.grad is kept
    assert all(not module._forward_hooks for module in model.modules())


def test_other_errors_do_not_halve_the_chunk() -> None:
    memory = Memory(6, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            ProjectedGradients(network(), 4, memory)((INPUTS, TARGETS))


def test_no_row_holds_a_graph_or_the_batch() -> None:
    inputs = INPUTS.clone().requires_grad_()
    rows = ProjectedGradients(network(), 4)((inputs, TARGETS))
    assert rows.grad_fn is None
    assert not rows.requires_grad
    assert inputs.grad is None
    assert rows._base is None or rows._base.numel() == rows.numel()


def test_smaller_budget_takes_smaller_chunks() -> None:
    largest = []
    for memory_budget in (1, 2**13, 2**30):
        memory = Memory(12)
        gradients = ProjectedGradients(network(), 4, memory, memory_budget=memory_budget)
        gradients((INPUTS, TARGETS))
        memory.seen.clear()
        gradients((INPUTS, TARGETS))
        largest.append(max(memory.seen))
    assert largest == sorted(largest)
    assert (largest[0], largest[-1]) == (1, 12)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, the model's own storages apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.entries = max(self.entries, tensor.numel())
        return result


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = (
            nn.Embedding(900, 300),
            nn.Parameter(torch.randn(1, 4, 300)),
        )
        self.first, self.norm = nn.Linear(300, 300), nn.LayerNorm(300)

    def forward(self, x: Tensor) -> Any:
        x = self.embedding(x) + self.positions
        x = x + torch.relu(self.first(self.norm(x)))
        return F.linear(x[:, -1], self.embedding.weight)


LARGE: list[tuple[Callable[[], nn.Module], Tensor]] = [
    (
        lambda: nn.Sequential(nn.Linear(300, 400), nn.Tanh(), nn.Linear(400, 300)),
        INPUTS.repeat(1, 50),
    ),
    (
        lambda: nn.Sequential(nn.Conv2d(200, 300, 3), nn.Tanh(), nn.Flatten(), nn.Linear(300, 100)),
        torch.randn(12, 200, 3, 3),
    ),
    (
        lambda: nn.Sequential(nn.ConvTranspose1d(200, 300, 3), nn.Flatten(), nn.Linear(900, 100)),
        torch.randn(12, 200, 1),
    ),
    (Tied, torch.randint(900, (12, 4))),
]


@pytest.mark.parametrize(("build", "inputs"), LARGE, ids=["linear", "conv", "transposed", "tied"])
def test_no_gradient_as_long_as_a_weight_exists(build: Any, inputs: Tensor) -> None:
    model = build()
    gradients = ProjectedGradients(model, 4)
    gradients((inputs, TARGETS))
    with Largest(model) as largest:
        gradients((inputs, TARGETS))
    longest = max(parameter.numel() for parameter in model.parameters())
    assert 0 < largest.entries < longest // 2


@pytest.mark.parametrize("name", ["lenet", "timm vit", "lstm", "gpt checkpointed", "einsum"])
def test_nothing_stays_behind_until_the_collector_runs(name: str) -> None:
    model, batch = case(name).make()
    gradients = ProjectedGradients(model, 8, case(name).loss)
    gradients(batch)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(o, Tensor) for o in gc.get_objects())
        gradients(batch)
        assert sum(isinstance(o, Tensor) for o in gc.get_objects()) == before
    finally:
        gc.enable()
