"""Shards: parts that are sketched and herded apart, and what must not depend on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset

MODES: dict[str, dict[str, Any]] = {
    "herding": {},
    "streaming": {"consensus": "streaming"},
    "one pass": {"consensus": "one_pass"},
    "agreement": {"rule": "agreement"},
    "random": {"rule": "random"},
    "rotate": {"draw": "rotate"},
    "rotate, streaming": {"draw": "rotate", "consensus": "streaming"},
    "random draws": {"draw": "random"},
}
orders = pytest.mark.parametrize("order", ["shuffled", "sorted by class"])


def examples(order: str = "shuffled", *, noise: float = 0.0) -> TensorDataset:
    """400 examples in 4 classes of 200, 100, 60 and 40; some with another label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([200, 100, 60, 40]))
    if order == "shuffled":
        labels = labels[torch.randperm(400, generator=generator)]
    centres = 2 * torch.randn(4, 12, generator=generator)
    inputs = centres[labels] + torch.randn(400, 12, generator=generator)
    flipped = torch.rand(400, generator=generator) < noise
    return TensorDataset(inputs, torch.where(flipped, (labels + 1) % 4, labels) * 10)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(12, 40)
        inputs, labels = examples().tensors
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(15):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model


def select(data: TensorDataset, **options: Any) -> Selection:
    return select_subset(
        network(), data, 0.25, sketch_size=16, batch_size=32, progress=False, **options
    )


@orders
@pytest.mark.parametrize("mode", MODES)
def test_quotas_are_exact_whatever_the_shards(mode: str, order: str) -> None:
    data = examples(order)
    for shards in (3, 8):
        selection = select(data, shards=shards, **MODES[mode])
        for epoch in (0, 3):
            labels = data.tensors[1][selection.epoch_indices(epoch).tolist()]
            assert torch.bincount(labels).nonzero().flatten().tolist() == [0, 10, 20, 30]
            assert torch.bincount(labels)[::10].tolist() == [50, 25, 15, 10]
        assert np.array_equal(selection.indices, np.unique(selection.indices))
        assert selection.settings["shards"] == shards
        assert np.array_equal(selection.labels, data.tensors[1].numpy())


@orders
@pytest.mark.parametrize("mode", ["herding", "streaming"])
def test_scores_are_nearly_those_of_one_shard(mode: str, order: str) -> None:
    data = examples(order)
    one = select(data, shards=1, **MODES[mode])
    for shards in (2, 8):
        several = select(data, shards=shards, **MODES[mode])
        correlation = np.corrcoef(one.scores, several.scores)[0, 1]
        assert correlation > 0.99
        assert several.certificate is not None
        assert one.certificate is not None
        assert several.certificate.squared_norm == pytest.approx(one.certificate.squared_norm)
        assert several.certificate.consensus_cosine > 0.95
        assert np.all(several.singular_values**2 <= one.certificate.squared_norm)


@orders
@pytest.mark.parametrize(
    ("rule", "consensus"),
    [
        ("herding", "exact"),
        ("herding", "streaming"),
        ("herding", "one_pass"),
        ("agreement", "exact"),
        ("agreement", "streaming"),
        ("agreement", "one_pass"),
    ],
)
def test_weights_count_every_untrimmed_example(rule: str, consensus: str, order: str) -> None:
    data = examples(order, noise=0.1)
    for shards in (1, 8):
        options: dict[str, Any] = {"rule": rule, "consensus": consensus, "keep_coordinates": True}
        selection = select(data, shards=shards, **options).find_weights()
        assert selection.weights is not None
        assert selection.weights.min() >= 1
        assert selection.weights.sum() == len(data) - selection.settings["trimmed"]
        assert (selection.settings["trimmed"] > 0) == (rule == "herding")


@pytest.mark.parametrize("consensus", ["exact", "streaming", "one_pass"])
def test_a_turn_shows_every_untrimmed_example(consensus: str) -> None:
    data = examples(noise=0.1)
    options = {"draw": "rotate", "consensus": consensus, "trim": "negative"}
    selection = select(data, shards=8, **options)
    seen = np.unique(np.concatenate([selection.epoch_indices(e) for e in range(4)]))
    left = len(data) - selection.settings["trimmed"]
    assert len(seen) == left < len(data)
    assert selection.draws is not None
    assert np.array_equal(np.sort(selection.draws.order), seen)
    # A class's blocks come from all shards: an epoch takes from each.
    of_parts = np.histogram(selection.epoch_indices(1), bins=8, range=(0, 400))[0]
    assert of_parts.min() > 0


def test_a_class_of_one_shard_and_a_shard_of_one_class() -> None:
    data = examples("sorted by class")
    selection = select(data, shards=4, consensus="streaming")
    assert selection.certificate is not None
    assert selection.certificate.consensus_cosine > 0.95
    exact = select(data, shards=4)
    assert np.corrcoef(selection.scores, exact.scores)[0, 1] > 0.99


def test_unlabelled_examples() -> None:
    inputs = examples().tensors[0]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).square().mean(dim=1)

    for consensus in ("exact", "streaming", "one_pass"):
        selection = select(TensorDataset(inputs), shards=3, loss=loss, consensus=consensus)
        assert len(selection) == 100
        assert selection.labels is None


def test_as_many_shards_as_examples() -> None:
    data = TensorDataset(*examples()[:12])
    selection = select_subset(network(), data, 6, shards=12, sketch_size=4, progress=False)
    assert len(selection) == 6
    streaming = select_subset(
        network(), data, 6, shards=12, sketch_size=4, progress=False, consensus="streaming"
    )
    assert len(streaming) == 6


def test_one_shard_is_the_default() -> None:
    data = examples()
    assert np.array_equal(select(data).indices, select(data, shards=1).indices)
    assert select(data).settings["shards"] == 1
