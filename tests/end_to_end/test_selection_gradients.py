"""Which gradients a selection takes, and what it says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients

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
    projected = select_subset(model, data, 0.25)  # "auto": longer than the sketch takes as it is
    assert projected.settings["gradients"].startswith("projected: width 32 over 4 parameters")
    assert projected.settings["gradients_because"] == "auto: D = 9,610 > 8,192"
    assert projected.settings["dim"] == 32 * 64 + 128 + 10 * 32 + 10
    assert projected.settings["parameters"]["0.weight"] == "linear: (128, 64) projected to (32, 64)"
    assert np.corrcoef(projected.scores, exact.scores)[0, 1] > 0.8


@pytest.mark.parametrize("gradients", ["auto", "functional", "projected"])
def test_params_choose_what_is_scored(
    gradients: str, network: nn.Module, blobs: TensorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    *_, (last, parameter) = network.named_parameters()
    with caplog.at_level("INFO", logger="sage_torch"):
        kept = select_subset(network, blobs, 0.25, gradients=gradients, params=[last])
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
