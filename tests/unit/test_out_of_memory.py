"""When memory runs out the chunk is halved, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_torch.gradients import FunctionalGradients

BATCH = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Failing:
    """A loss that fails, and counts how often it was asked."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("the device is full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_twice_is_not_tried_by_the_loop(error: Exception) -> None:
    loss = Failing(error)
    with (
        pytest.warns(UserWarning, match="out of memory with 4 examples at once: going on with 2"),
        pytest.raises(type(error)),
    ):
        FunctionalGradients(network(), loss).unchecked()(BATCH)
    assert loss.calls == 2


def test_memory_that_runs_out_once_halves_the_chunk() -> None:
    class OnceFull(Failing):
        def __call__(self, model: nn.Module, batch: Any) -> Tensor:
            if self.calls:
                return F.cross_entropy(model(batch[0]), batch[1], reduction="none")
            return super().__call__(model, batch)

    loss = OnceFull(torch.OutOfMemoryError("the device is full"))
    model = network()
    gradients = FunctionalGradients(model, loss).unchecked()
    with pytest.warns(UserWarning, match="smaller memory_budget"):
        rows = gradients(BATCH)
    assert torch.allclose(rows, FunctionalGradients(model)(BATCH), atol=1e-6)
    assert "vmap(grad)" in gradients.describe()


def test_memory_that_runs_out_while_the_first_batch_is_checked_ends_nothing() -> None:
    class FullAtFirst(Failing):
        def __call__(self, model: nn.Module, batch: Any) -> Tensor:
            self.calls += 1
            if self.calls == 1:
                raise self.error
            return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    loss = FullAtFirst(torch.OutOfMemoryError("the device is full"))
    model = network()
    rows = FunctionalGradients(model, loss)(BATCH)
    assert torch.allclose(rows, FunctionalGradients(model)(BATCH), atol=1e-6)
