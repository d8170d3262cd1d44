"""A rotation that is refreshed goes by all readings of the labels so far."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import SageSampler, Selection, select_subset
from sage_torch.passes.calibration import Judged
from sage_torch.passes.readings import Readings


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def judged(probabilities: np.ndarray, is_wrong: np.ndarray) -> Judged:
    return Judged.empty(len(probabilities))._replace(probabilities=probabilities, is_wrong=is_wrong)


def test_readings_are_averaged() -> None:
    first = Readings.of(judged(floats(0.2, 1.0), floats(1.0, 0.0)), 0.3, None)
    assert (first.rho, first.count) == (0.3, 1)
    second = Readings.of(judged(floats(0.8, 1.0), floats(0.0, 0.0)), 0.1, first)
    third = Readings.of(judged(floats(0.8, 0.4), floats(0.5, 1.0)), 0.2, second)
    np.testing.assert_allclose(second.probabilities, [0.5, 1.0])
    np.testing.assert_allclose(second.is_wrong, [0.5, 0.0])  # dropped by one reading, it comes back
    np.testing.assert_allclose(third.probabilities, [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(third.is_wrong, [0.5, 1 / 3], rtol=1e-6)
    assert third.rho == pytest.approx(0.2)
    assert third.count == 3


def change(model: nn.Module, epoch: int) -> None:
    """Let the model become another one, as training does."""
    generator = torch.Generator().manual_seed(epoch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def through(sampler: SageSampler, model: nn.Module, epochs: range) -> list[list[int]]:
    found = []
    for epoch in epochs:
        found.append(list(sampler))
        change(model, epoch)
    return found


def alone(model: nn.Module, data: TensorDataset) -> Selection:
    return select_subset(model, data, 0.3, draw="rotate", progress=False)


def make(model: nn.Module, data: TensorDataset, **options: Any) -> SageSampler:
    given = {"draw": "rotate", "warmup_epochs": 1, "refresh_every": 2, "progress": False}
    return SageSampler(model, data, keep=0.3, **given | options)  # type: ignore[arg-type]


def test_a_refresh_adds_a_reading(network: nn.Module, blobs: TensorDataset) -> None:
    sampler, readings = make(network, blobs), []
    for epoch in range(6):
        if epoch in (1, 3, 5):
            readings.append(alone(network, blobs))
        list(sampler)
        change(network, epoch)
    last = sampler.selection
    assert last is not None
    assert last.settings["readings"] == 3
    means = {
        "probabilities": np.mean([each.probabilities for each in readings], axis=0),
        "rho": np.mean([each.settings["rho"] for each in readings]),
    }
    np.testing.assert_allclose(last.probabilities, means["probabilities"], atol=1e-6)
    assert last.settings["rho"] == pytest.approx(means["rho"])
    assert not np.allclose(last.probabilities, readings[-1].probabilities)
    assert Readings.of_selection(last, len(blobs)) is not None
    assert Readings.of_selection(last, len(blobs) + 1) is None  # the data have grown


@pytest.mark.parametrize("stopped", [2, 3, 4])
def test_readings_survive_a_restart(stopped: int, network: nn.Module, blobs: TensorDataset) -> None:
    begun = {name: value.clone() for name, value in network.state_dict().items()}
    expected = through(make(network, blobs), network, range(7))
    network.load_state_dict(begun)
    sampler = make(network, blobs)
    assert through(sampler, network, range(stopped)) == expected[:stopped]
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    again = make(network, blobs)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert through(again, network, range(stopped, 7)) == expected[stopped:]
    assert again.selection is not None
    assert again.selection.settings["readings"] == 3


def test_readings_are_in_the_checkpoint(
    network: nn.Module, blobs: TensorDataset, tmp_path: Any
) -> None:
    sampler = make(network, blobs, checkpoint=tmp_path)
    through(sampler, network, range(3))
    state = sampler.state_dict()
    list(sampler)  # refreshes, and writes the selection
    again = make(network, blobs, checkpoint=tmp_path)
    again.load_state_dict(state)
    list(again)  # on the same model, so it takes the selection from the folder
    assert again.selection is not None
    assert sampler.selection is not None
    assert again.selection.settings == sampler.selection.settings
    assert again.selection.settings["readings"] == 2
    assert np.array_equal(again.selection.probabilities, sampler.selection.probabilities)


@pytest.mark.parametrize("options", [{"trim": "negative"}, {"draw": "fixed"}, {"draw": "random"}])
def test_other_draws_go_by_the_live_model_alone(
    options: dict[str, Any], network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = make(network, blobs, **options)
    through(sampler, network, range(3))
    list(sampler)
    found = sampler.selection
    expected = select_subset(network, blobs, 0.3, progress=False, **{"draw": "rotate"} | options)
    assert found is not None
    assert "readings" not in found.settings
    assert np.array_equal(found.indices, expected.indices)
