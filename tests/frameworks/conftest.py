"""What all frameworks train on: numbered examples, so that tests see which ones were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset

KEPT = 22  # of 90 with keep=0.25
workers = {
    "0 workers": {"num_workers": 0},
    "2 workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True},
}


# A framework makes its own iterators of a loader; whether workers stay is the loader's matter, and
# the tests of loaders try both.
SLOW = {"persistent"}


@pytest.fixture(
    params=[
        pytest.param(how, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, how in workers.items()
    ]
)
def reading(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How a loader reads."""
    return dict(request.param)


@pytest.fixture
def numbered(blobs: TensorDataset) -> TensorDataset:
    """(input, label, number) of 90 examples."""
    return TensorDataset(*blobs.tensors, torch.arange(90))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def selected(numbered: TensorDataset) -> Callable[..., Selection]:
    """Select by hand, with given weights."""

    def select(model: nn.Module, weights: dict[str, Tensor], **options: Any) -> Selection:
        model = copy.deepcopy(model)
        model.load_state_dict(weights)
        given = {"loss": loss, "progress": False, **options}
        return select_subset(model, numbered, 0.25, **given)

    return select


@pytest.fixture
def sage() -> dict[str, Any]:
    """Options of every sampler here."""
    return {"keep": 0.25, "loss": loss, "progress": False}
