"""Given rows, neither threads nor the size of scoring batches change a selection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients

RULES = ["herding", "agreement"]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def given(
    digits: tuple[TensorDataset, TensorDataset], warm: Callable[[], nn.Module]
) -> TensorDataset:
    """Gradients of the digits, computed once: torch rounds them by the size of a batch."""
    computer = FunctionalGradients(warm(), params=["2.*"])
    inputs, labels = digits[0].tensors
    return TensorDataset(computer((inputs, labels)), labels)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("consensus", ["exact", "streaming"])
@pytest.mark.parametrize("rule", RULES)
def test_threads_and_batches_keep_the_same_examples(
    rule: Any, consensus: Any, given: TensorDataset
) -> None:
    found = []
    for threads, batch_size in [(1, 32), (2, 32), (1, 256), (2, 256)]:
        torch.set_num_threads(threads)
        selection = select_subset(
            nn.Linear(1, 1),
            given,
            0.25,
            rule=rule,
            consensus=consensus,
            gradients=lambda batch: batch[0],
            batch_size=batch_size,
            progress=False,
        )
        found.append(selection.indices.tolist())
    assert found[1:] == found[:1] * 3
