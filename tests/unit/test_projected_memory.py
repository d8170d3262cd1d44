"""Where memory runs out the chunk is halved, once; and what a call may hold."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from microbatches import assert_rows, cross_entropy
from torch import Tensor, nn

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
