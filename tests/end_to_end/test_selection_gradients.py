"""Which gradients a selection takes, and what it says of them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from sage_torch import select_subset
from sage_torch.gradients import (
    FunctionalGradients,
    LastLayerGradients,
    ProjectedGradients,
    last_layer,
)

Digits = tuple[TensorDataset, TensorDataset]


def test_compression_of_long_gradients(digits: Digits) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))  # D = 9,610
    data = Subset(digits[0], range(100))
    kept = select_subset(model, data, 0.25, gradients="functional")
    assert kept.settings["dim"] == 8192
    exact = select_subset(model, data, 0.25, gradients="functional", compress=None)
    assert exact.settings["dim"] == 9610
    assert np.corrcoef(kept.scores, exact.scores)[0, 1] > 0.99
    # "auto" for margins: longer than the sketch takes as it is.
    projected = select_subset(model, data, 0.25, trim="negative")
    assert projected.settings["gradients"].startswith("projected: width 32 over 4 parameters")
    assert projected.settings["gradients_because"] == "auto: D = 9,610 > 8,192"
    assert projected.settings["dim"] == 32 * 64 + 128 + 10 * 32 + 10
    assert projected.settings["parameters"]["0.weight"] == "linear: (128, 64) projected to (32, 64)"
    assert np.corrcoef(projected.scores, exact.scores)[0, 1] > 0.8


@pytest.mark.parametrize("consensus", ["exact", "streaming", "one_pass"])
def test_last_layer_gradients_are_never_formed(
    consensus: Any, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 900), nn.ReLU(), nn.Linear(900, 10))  # D = 9,010
    data = Subset(digits[0], range(300))
    formed = LastLayerGradients(model)
    options: Any = {"compress": None, "consensus": consensus, "batch_size": 64, "trim": "negative"}
    by_rows = select_subset(model, data, 0.25, gradients=lambda batch: formed(batch), **options)
    monkeypatch.setattr(last_layer, "outer_products", None)
    by_factors = select_subset(model, data, 0.25, gradients="last_layer", **options)
    assert by_factors.settings["dim"] == 9010
    np.testing.assert_allclose(by_factors.scores, by_rows.scores, atol=1e-4)
    shared = np.intersect1d(by_factors.indices, by_rows.indices)
    assert len(shared) >= len(by_rows) - 4  # the Gram matrix of factors is rounded otherwise


def test_last_layer_gradients_of_tokens_are_formed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    inputs, targets = torch.randn(30, 7, 4), torch.randint(3, (30, 7))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch[0])
        return nn.functional.cross_entropy(logits.mT, batch[1], reduction="none").mean(1)

    options: Any = {"loss": loss, "class_balanced": False}
    data = TensorDataset(inputs, targets)
    kept = select_subset(model, data, 0.5, gradients="last_layer", **options)
    parameters = ["1.weight", "1.bias"]
    exact = select_subset(model, data, 0.5, gradients="functional", params=parameters, **options)
    np.testing.assert_allclose(kept.scores, exact.scores, atol=1e-4)


@pytest.mark.parametrize("gradients", ["auto", "functional", "projected"])
def test_params_choose_what_is_scored(
    gradients: str, network: nn.Module, blobs: TensorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    *_, (last, parameter) = network.named_parameters()
    with caplog.at_level("INFO", logger="sage_torch"):
        options: Any = {"params": [last], "trim": "negative"}
        kept = select_subset(network, blobs, 0.25, gradients=gradients, **options)
    assert kept.settings["dim"] == parameter.numel()
    assert kept.settings["params"] == [last]
    handled = kept.settings["parameters"]
    assert list(handled) == [name for name, _ in network.named_parameters()]
    assert {name for name, how in handled.items() if how != "left out"} == {last}
    for name, how in handled.items():
        assert f"gradient of {name}: {how}" in caplog.text
    own = FunctionalGradients(network, params=last)
    by_own = select_subset(network, blobs, 0.25, gradients=own)
    assert np.array_equal(kept.indices, by_own.indices)


@pytest.mark.parametrize("params", [3, [3], "nothing.*"])
def test_wrong_params(params: Any, network: nn.Module, blobs: TensorDataset) -> None:
    with pytest.raises((TypeError, ValueError), match="params"):
        select_subset(network, blobs, 0.25, params=params)


def test_a_gradient_that_an_autograd_function_stops() -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> None:
            return None

    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            first = self.first(x)
            stopped: Tensor = Stop.apply(first)  # type: ignore[no-untyped-call]
            return self.last(stopped + self.first(x))

    torch.manual_seed(0)
    model, batch = Stopped(), (torch.randn(5, 4), torch.randint(3, (5,)))
    rows = ProjectedGradients(model)(batch)
    assert torch.allclose(rows, FunctionalGradients(model)(batch), atol=1e-6)


def test_activations_do_not_wait_for_the_backward_pass() -> None:
    class Wide(torch.autograd.Function):
        """Doubles, and sees in the backward pass whether its output is still alive."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            output = 2 * x
            ctx.output = weakref.ref(output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            alive.append(ctx.output() is not None)
            return 2 * gradients[0]

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 400), nn.Linear(400, 3)

        def forward(self, x: Tensor) -> Any:
            return self.last(Wide.apply(self.first(x)))  # type: ignore[no-untyped-call]

    alive: list[bool] = []
    batch = (torch.randn(5, 4), torch.randint(3, (5,)))
    gradients = ProjectedGradients(Doubled(), width=4)
    gradients(batch)
    alive.clear()
    gradients(batch)
    assert alive == [False]  # only its projection is kept


def test_the_first_batch_is_computed_once() -> None:
    seen: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(len(batch[0]))
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    gradients = ProjectedGradients(nn.Linear(4, 3), loss=loss)
    gradients((torch.randn(9, 4), torch.randint(3, (9,))))
    # Losses of single examples, their rows; observed and measured; together; the batch.
    assert sorted(seen) == [1, 1, 1, 1] * 2 + [2, 2, 3, 8, 9]
    gradients((torch.randn(9, 4), torch.randint(3, (9,))))
    assert seen[13:] == [9]
