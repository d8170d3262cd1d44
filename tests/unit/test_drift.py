"""How far a model has moved since a selection, and what that decides."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sage_torch import SageError, SageSampler
from sage_torch.options import Options
from sage_torch.sampler.drift import DriftWatch, Reading, read_probe

OPTIONS = Options(keep=0.5, progress=False)


def reading(directions: Any, scores: Any) -> Reading:
    return Reading(np.array(directions, np.float32), np.array(scores, np.float32))


def moved(model: nn.Module, by: float) -> nn.Module:
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model


def test_distances() -> None:
    first = reading([[1, 0], [0, 1]], [0.1, 0.2, 0.3, 0.4])
    assert first.distance(first) == (0.0, 0.0)
    turned = reading([[0, 1], [0, 1]], [0.4, 0.3, 0.2, 0.1])
    assert turned.distance(first) == first.distance(turned) == (0.5, 2.0)
    without = reading([[1, 0], [0, 0]], [0.1, 0.2, 0.3, 0.4])  # a class whose gradients are all 0
    assert without.distance(without)[0] == 0.0
    assert without.distance(first)[0] == 0.5
    flat = reading([[1, 0], [0, 1]], [0.5] * 4)
    assert flat.distance(flat)[1] == 0.0
    assert flat.distance(first)[1] == 1.0


def test_ranks_are_spearmans() -> None:
    random = np.random.default_rng(0)
    for decimals in (1, 8):  # with ties and without
        before, now = (random.normal(size=50).round(decimals) for _ in range(2))
        found = reading([[1]], now).distance(reading([[1]], before))[1]
        assert found == pytest.approx(1 - spearmanr(before, now).statistic, abs=1e-6)


def test_readings_of_different_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a reading of directions"):
        reading([[1, 0]], [1, 2]).distance(reading([[1]], [1, 2]))


def test_a_model_that_stays_reads_the_same(network: nn.Module, blobs: TensorDataset) -> None:
    first = read_probe(network, blobs, OPTIONS, size=40)
    assert first.scores.shape == (40,)
    assert first.directions.shape == (3, 53)
    again = read_probe(network, blobs, Options(keep=0.5, batch_size=7, progress=False), size=40)
    consensus, ranks = again.distance(first)
    assert consensus == pytest.approx(0, abs=1e-6)
    assert ranks == pytest.approx(0, abs=1e-3)  # rounding may swap two
    near, far = (
        read_probe(moved(network, by), blobs, OPTIONS, size=40).distance(first)
        for by in (0.05, 1.0)
    )
    assert all(0 < less < more for less, more in zip(near, far, strict=True))


def test_a_probe_is_part_of_the_data_set(network: nn.Module, blobs: TensorDataset) -> None:
    read: list[int] = []

    class Watched(Dataset[Any]):
        def __len__(self) -> int:
            return 90

        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return blobs[index]

    read_probe(network, Watched(), OPTIONS, size=20)
    probe = set(read)
    assert len(probe) == 20
    read.clear()
    read_probe(moved(network, 1.0), Watched(), OPTIONS, size=20)
    assert set(read) == probe
    read.clear()
    read_probe(network, Watched(), Options(keep=0.5, seed=1, progress=False), size=20)
    assert set(read) != probe
    assert len(read_probe(network, blobs, OPTIONS, size=512).scores) == 90


def test_the_users_state_is_preserved(network: nn.Module, blobs: TensorDataset) -> None:
    network.append(nn.Dropout())
    network[0].weight.grad = torch.ones(5, 6)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    weights = copy.deepcopy(network.state_dict())
    read_probe(network, blobs, OPTIONS, size=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert torch.equal(network[0].weight.grad, torch.ones(5, 6))
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def test_a_bad_gradient_is_named(network: nn.Module, blobs: TensorDataset) -> None:
    inputs = blobs.tensors[0].clone()
    inputs[7] = torch.inf
    with pytest.raises(SageError, match="example 7 of the data set") as caught:
        read_probe(network, TensorDataset(inputs, blobs.tensors[1]), OPTIONS, size=90)
    assert caught.value.index == 7


def watch_over(distances: list[float], threshold: float = 0.3) -> tuple[DriftWatch, list[int]]:
    """Return a watch, and when it would select over epochs of consensus so far apart."""
    watch = DriftWatch(threshold, 4)
    angles = np.arccos(1 - np.array(distances))
    selected, at = [], 0.0
    for epoch, angle in enumerate(angles):
        at += angle
        now = reading([[np.cos(at), np.sin(at)]], [1, 2, 3, 4])
        if epoch == 0 or watch.has_moved(epoch, lambda now=now: now, lambda moved: moved):
            selected.append(epoch)
            watch.selected(epoch, now)
    return watch, selected


def test_it_adds_up_until_the_threshold() -> None:
    assert watch_over([0, 0, 0, 0])[1] == [0]
    assert watch_over([0, 0.5, 0.5, 0])[1] == [0, 1, 2]
    assert watch_over([0, 0.1, 0.1, 0.1, 0.1])[1] == [0, 2, 4]  # angles add up, not cosines
    watch, selected = watch_over([0, 0.1], threshold=0.05)
    assert selected == [0, 1]
    assert watch.distance == pytest.approx((0.1, 0.0))


def test_an_epoch_is_looked_at_once_unless_it_should_select() -> None:
    watch = DriftWatch(0.3, 4)
    watch.selected(0, reading([[1, 0]], [1, 2, 3, 4]))
    looks = []

    def look(direction: Any) -> bool:
        def read() -> Reading:
            looks.append(direction)
            return reading([direction], [1, 2, 3, 4])

        return watch.has_moved(1, read, lambda moved: moved)

    assert look([0, 1])  # a selection that fails is due again
    assert look([0, 1])
    assert not look([1, 0])
    assert not look([0, 1])  # within one epoch, training moves the model, too
    assert len(looks) == 3


def test_states() -> None:
    watch, _ = watch_over([0, 0.1, 0.1, 0.1])
    file = io.BytesIO()
    torch.save(watch.as_state(), file)
    file.seek(0)
    again = DriftWatch(0.3, 4).loaded(torch.load(file, weights_only=True))
    assert again.as_state()["looked_at"] == 3
    far = reading([[-1, 0]], [1, 2, 3, 4])
    assert not again.has_moved(3, lambda: far, lambda moved: moved)
    assert again.has_moved(4, lambda: far, lambda moved: moved)
    without = watch.loaded(None)  # of a sampler that did not look for drift
    assert not without.has_moved(4, lambda: far, lambda moved: moved)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"looked_at": 1},
        {"looked_at": "1", "reading": None},
        {"looked_at": 1, "reading": {"directions": torch.ones(1, 2)}},
        {"looked_at": 1, "reading": {"directions": torch.ones(2), "scores": torch.ones(2)}},
        {"looked_at": 1, "reading": {"directions": torch.ones(1, 2) / 0, "scores": torch.ones(2)}},
    ],
)
def test_bad_states_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        DriftWatch(0.3, 4).loaded(wrong)


def test_bad_options_are_refused(network: nn.Module) -> None:
    for option, error in (
        ({"drift_threshold": "0.5"}, TypeError),
        ({"drift_threshold": float("nan")}, ValueError),
        ({"drift_threshold": -0.1}, ValueError),
        ({"drift_probe": 1}, ValueError),
        ({"drift_probe": 2.5}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(option))):
            SageSampler(network, keep=0.5, **option)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='rule that scores with refresh_every="drift"'):
        SageSampler(network, keep=0.5, refresh_every="drift", rule="random")


def test_a_sampler_refreshes_when_the_model_has_moved(
    network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(
        network,
        keep=0.5,
        warmup_epochs=1,
        refresh_every="drift",
        drift_threshold=0.3,
        drift_probe=40,
        progress=False,
    )
    loader = DataLoader(blobs, batch_size=15, sampler=sampler)
    made: list[object] = []
    for epoch in range(6):
        assert sum(len(labels) for _, labels in loader) == (90 if epoch == 0 else 45)
        made.append(sampler.selection)
        if epoch == 3:
            network.load_state_dict(moved(network, 2.0).state_dict())
    assert made[0] is None
    assert made[1] is made[2] is made[3] is not None
    assert made[4] is made[5] is not made[3]
    assert sampler.drift is not None
    assert max(sampler.drift) < 1e-3
