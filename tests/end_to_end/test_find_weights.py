"""Weights count what the rule left, by the coordinates that it compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference_rules
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, _core, select_subset

N, CLASSES = 500, 4
Ints = NDArray[np.int64]
CASES: dict[str, dict[str, Any]] = {
    "by labels": {},
    "by margins": {"trim": "negative"},
    "a share": {"trim": 0.3, "quotas": "equal", "keep": 0.5},
    "nothing": {"trim": None, "consensus": "one_pass"},
    "one group": {"class_balanced": False},
    "without classes": {"labels": None},
    "by agreement": {"rule": "agreement"},
}


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, TensorDataset]:
    """A warmed-up model, and uneven classes with a tenth of wrong labels."""
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(N, generator=random) ** 2 * CLASSES).long()
    inputs = torch.randn(N, 12, generator=random) + 2 * torch.eye(12)[labels]
    wrong = torch.rand(N, generator=random) < 0.1
    labels = torch.where(wrong, (labels + 1) % CLASSES, labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for batch in torch.arange(N).split(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    return model, TensorDataset(inputs, labels)


def select(task: tuple[nn.Module, TensorDataset], **options: Any) -> Selection:
    given = {"keep": 0.2, "sketch_size": 16, "keep_coordinates": True, "progress": False}
    return select_subset(*task, **given | options)


def counts(selection: Selection, groups: Ints, left: Ints, width: int | None) -> list[float]:
    assert selection.coordinates is not None
    rows = selection.coordinates.rows[:, :width]
    return reference_rules.weights(rows, groups, left, selection.indices).tolist()


def found(selection: Selection) -> list[float]:
    weights = selection.find_weights().weights
    assert weights is not None
    assert weights.dtype == np.float32
    return weights.tolist()


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_weights_count_what_the_rule_left(
    options: dict[str, Any], task: tuple[nn.Module, TensorDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Ints] = []
    untrimmed = _core.untrimmed

    def noted(*args: Any, **kwargs: Any) -> Ints:
        seen.append(untrimmed(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(_core, "untrimmed", noted)
    selection = Selection.from_bytes(select(task, **options).to_bytes())
    left = seen[0] if seen else np.arange(N)
    assert len(left) == N - selection.settings["trimmed"]
    has_groups = options.get("class_balanced", True) and "labels" not in options
    groups = task[1].tensors[1].numpy() if has_groups else np.zeros(N, np.int64)
    expected = counts(selection, groups, left, None)
    assert found(selection) == expected
    assert sum(expected) == len(left)
    if not options:
        assert expected != counts(selection, groups, np.arange(N), None)
        assert expected != counts(selection, groups, left, 16)  # features are compared, too


def test_a_cut_has_weights_of_its_own(task: tuple[nn.Module, TensorDataset]) -> None:
    first = select(task).find_weights()
    cut = first.recut(keep=0.5, trim=None)
    assert cut.weights is None
    groups = task[1].tensors[1].numpy()
    assert found(cut) == counts(cut, groups, np.arange(N), 16)  # it compares gradients alone
    assert len(found(first.recut(rule="agreement"))) == 100


def test_weights_of_a_stream_count_each_kept_one(task: tuple[nn.Module, TensorDataset]) -> None:
    stream = select(task, consensus="streaming", shards=5, trim=0.5, keep=0.4)
    labels, margins = task[1].tensors[1].numpy(), stream.margins
    assert margins is not None
    left = np.concatenate(
        [
            members[np.argsort(margins[members])][len(members) // 2 :]
            for members in map(np.flatnonzero, labels == np.c_[:CLASSES])
        ]
    )
    beside = np.setdiff1d(stream.indices, left)
    assert len(beside)  # shards are trimmed by themselves
    assert found(stream) == counts(stream, labels, np.union1d(left, beside), 16)


def test_what_was_dropped_as_a_duplicate_counts_for_nobody(
    task: tuple[nn.Module, TensorDataset],
) -> None:
    model, data = task
    twice = TensorDataset(*(torch.cat([part, part[:200]]) for part in data.tensors))
    with pytest.warns(UserWarning, match="near duplicates are judged by sketched gradients"):
        selection = select((model, twice), duplicates="drop", trim=None)
    assert selection.duplicate_of is not None
    left = np.flatnonzero(selection.duplicate_of < 0)
    assert len(left) <= N
    assert found(selection) == counts(selection, twice.tensors[1].numpy(), left, 16)


def test_all_else_stays(task: tuple[nn.Module, TensorDataset]) -> None:
    selection = select(task)
    weighted = selection.find_weights()
    assert selection.weights is None
    assert replace(weighted, weights=None).to_bytes() == selection.to_bytes()
    assert found(Selection.from_bytes(weighted.to_bytes())) == found(selection)


def test_where_there_are_none_it_says_so(task: tuple[nn.Module, TensorDataset]) -> None:
    with pytest.raises(ValueError, match="keep_coordinates=True"):
        select(task, keep_coordinates=False).find_weights()
    with pytest.raises(ValueError, match='draw="fixed", got draw="rotate"'):
        select(task, draw="rotate").find_weights()
    at_random = select(task).recut(rule="random")
    with pytest.raises(ValueError, match='rule "herding" or "agreement", got rule="random"'):
        at_random.find_weights()
    with pytest.raises(ValueError, match='got rule="random"'):
        select(task, rule="random", keep_coordinates=False).find_weights()
