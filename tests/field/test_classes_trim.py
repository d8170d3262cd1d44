"""Without two classes nothing is trimmed; with them, scores go by class whatever the quotas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sage_torch import Selection, select_subset
from sage_torch.stream import SageStream

N = 500
INPUTS = torch.randn(N, 6, generator=torch.Generator().manual_seed(2))
modes = pytest.mark.parametrize("consensus", ["exact", "streaming", "one_pass"])


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0])[:, 0] - batch[1]).square()


def logistic(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch[0])
    targets = batch[1].view(len(logits), -1)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def warmed(outputs: int, data: TensorDataset, loss: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, outputs))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model, data.tensors).mean().backward()
        optimizer.step()
    return model


def select(model: nn.Module, data: TensorDataset, loss: Any, **options: Any) -> Selection:
    return select_subset(model, data, 0.3, loss=loss, progress=False, batch_size=100, **options)


@modes
@pytest.mark.parametrize("draw", ["fixed", "rotate", "random"])
def test_both_signs_of_skewed_residuals_are_kept(consensus: str, draw: str) -> None:
    noise = torch.distributions.Exponential(1.0).sample((N,)) - 0.3
    data = TensorDataset(INPUTS, INPUTS[:, 0] + noise)
    model = warmed(1, data, squared)
    found = select(model, data, squared, consensus=consensus, draw=draw)
    with torch.no_grad():
        over = (data.tensors[1] > model(INPUTS)[:, 0]).numpy()
    assert found.settings["trimmed"] == 0
    assert found.settings["trim"] == "auto"
    assert "two classes" in found.settings["trimmed_because"]
    assert abs(over[found.indices].mean() - over.mean()) < 0.15
    assert found.margins is not None
    assert (found.margins < 0).any()  # there was something that the trim would have dropped


@modes
def test_every_label_of_a_multi_label_task_is_kept(consensus: str) -> None:
    targets = (INPUTS[:, :3] > torch.tensor([-0.5, 0.0, 1.2])).float()
    data = TensorDataset(INPUTS, targets)
    found = select(warmed(3, data, logistic), data, logistic, consensus=consensus)
    share, of_all = targets[found.indices].mean(0), targets.mean(0)
    assert bool((share > 0.6 * of_all).all()), (share, of_all)
    assert found.settings["classes"] == 0


def test_one_class_is_no_two() -> None:
    data = TensorDataset(INPUTS, torch.zeros(N, dtype=torch.long))
    model = nn.Sequential(nn.Linear(6, 2))
    loss = lambda m, b: m(b[0]).square().sum(1) * (1 + b[0][:, 0]).sign()  # noqa: E731
    found = select(model, data, loss)
    assert (found.settings["classes"], found.settings["trimmed"]) == (1, 0)
    assert found.margins is not None
    assert (found.margins < 0).any()


def test_a_share_is_trimmed_where_it_is_asked_for() -> None:
    data = TensorDataset(INPUTS, INPUTS[:, 0])
    found = select(warmed(1, data, squared), data, squared, trim=0.2)
    assert found.settings["trimmed"] == 100
    assert "trimmed_because" not in found.settings


@modes
def test_scores_go_by_class_whatever_the_quotas(consensus: str) -> None:
    labels = (INPUTS[:, 0] > 1.0).long()  # a sixth
    flipped = torch.rand(N, generator=torch.Generator().manual_seed(1)) < 0.1
    labels = torch.where(flipped, 1 - labels, labels)
    data = TensorDataset(INPUTS, labels)
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    model = warmed(2, data, loss)
    options = {"consensus": consensus, "trim": "negative"}
    by_class = select(model, data, loss, **options)
    over_all = select(model, data, loss, class_balanced=False, **options)
    assert np.array_equal(over_all.scores, by_class.scores)
    assert over_all.margins is not None
    assert np.array_equal(over_all.margins, by_class.margins)  # type: ignore[arg-type]
    assert over_all.indices.tolist() != by_class.indices.tolist()
    share, of_all = labels[over_all.indices].float().mean(), labels.float().mean()
    assert share > 0.6 * of_all  # the smaller class is not what opposes the consensus
    trimmed = over_all.settings["trimmed"]
    assert 0 < trimmed == (over_all.margins < 0).sum()


@pytest.mark.parametrize("consensus", ["exact", "streaming"])  # one pass reads no labels
@pytest.mark.parametrize("apart", [1.0, 2.0])
def test_a_small_class_that_overlaps_is_kept_whatever_the_quotas(
    consensus: str, apart: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(N, generator=generator) < 0.1).long()
    inputs = INPUTS.clone()
    inputs[:, 0] += apart * labels
    data = TensorDataset(inputs, labels)
    options: dict[str, Any] = {"consensus": consensus, "batch_size": 64, "progress": False}
    found = {
        is_by_class: select_subset(
            nn.Linear(inputs.shape[1], 2), data, 0.25, class_balanced=is_by_class, **options
        )
        for is_by_class in (False, True)
    }
    terms = ("trimmed_by_noise", "trimmed_by_budget")
    assert [found[False].settings[t] for t in terms] == [found[True].settings[t] for t in terms]
    assert labels[found[False].indices].float().mean() > 0.6 * labels.float().mean()


class Endless(IterableDataset[Any]):
    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def __iter__(self) -> Any:
        yield from zip(INPUTS.repeat(4, 1), self.targets.repeat(4), strict=True)


@pytest.mark.parametrize("targets", [INPUTS[:, 0] + 0.5, torch.arange(N)], ids=["real", "index"])
def test_a_stream_without_classes_is_drawn_from_at_random(targets: Tensor) -> None:
    data = TensorDataset(INPUTS, INPUTS[:, 0] + 0.5)
    model = warmed(1, data, squared)
    loss = lambda m, b: (m(b[0])[:, 0] - b[0][:, 0] - 0.5).square()  # noqa: E731
    stream = SageStream(
        model, Endless(targets), 0.4, rule="random", loss=loss, warm_up=100, batch_size=100
    )
    kept = torch.cat([inputs for inputs, _ in DataLoader(stream, batch_size=50)])
    with torch.no_grad():
        over, of_all = (
            (rows[:, 0] + 0.5 > model(rows)[:, 0]).float().mean() for rows in (kept, INPUTS)
        )
    assert abs(over - of_all) < 0.06
