"""What each epoch draws, and what the trim keeps from every rule but two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from sage_torch import Selection, select_subset

Digits = tuple[TensorDataset, TensorDataset]
Warm = Callable[[], nn.Module]

modes = pytest.mark.parametrize("consensus", ["exact", "streaming"])


@modes
@pytest.mark.parametrize("draw", ["rotate", "random"])
@pytest.mark.parametrize("rule", ["herding", "random"])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.85])
def test_draws_take_another_subset_each_epoch(
    keep: float, rule: Any, draw: Any, consensus: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(100, 6, generator=generator), torch.tensor([0] * 5 + [1] * 20 + [2] * 75)
    )
    drawn = select_subset(
        nn.Linear(6, 3), data, keep, rule=rule, draw=draw, consensus=consensus, trim=None
    )
    labels = data.tensors[1].numpy()
    quotas = reference.class_quotas([5, 20, 75], len(drawn)).tolist()
    seen = np.zeros(100, int)
    for epoch in range(30):
        indices = drawn.epoch_indices(epoch)
        assert (np.diff(indices) > 0).all()
        assert np.bincount(labels[indices], minlength=3).tolist() == quotas
        seen[indices] += 1
    assert np.array_equal(drawn.epoch_indices(0), drawn.indices)
    assert not np.array_equal(drawn.epoch_indices(1), drawn.indices)
    if draw == "rotate":
        for class_id in range(3):
            assert np.ptp(seen[labels == class_id]) <= 1  # nobody is left behind
    assert seen.sum() == 30 * len(drawn)


@modes
@pytest.mark.parametrize("draw", ["rotate", "random"])
def test_draws_never_show_what_was_trimmed(
    draw: Any, consensus: Any, digits: Digits, warm: Warm
) -> None:
    data = Subset(digits[0], range(700))
    # Two coarse classes, so that many margins are negative.
    halves = digits[0].tensors[1][:700] // 5
    options = {"draw": draw, "consensus": consensus, "labels": halves}
    drawn = select_subset(warm(), data, 0.2, trim="negative", **options)
    seen = np.unique(np.concatenate([drawn.epoch_indices(epoch) for epoch in range(40)]))
    assert drawn.margins is not None
    negative = np.flatnonzero(drawn.margins < 0)
    assert 0.1 < len(negative) / 700 < 0.75
    assert drawn.settings["trimmed"] == len(negative)
    assert np.array_equal(seen, np.flatnonzero(drawn.margins >= 0))


def test_herding_trims_and_the_other_rules_do_not(digits: Digits, warm: Warm) -> None:
    inputs, right = (tensor[:700] for tensor in digits[0].tensors)
    data = TensorDataset(inputs, torch.where(torch.arange(700) % 5 == 0, (right + 3) % 10, right))

    def kept(rule: Any) -> Selection:
        return select_subset(warm(), data, 0.2, rule=rule, trim="negative")

    trimmed = kept("herding")
    assert trimmed.margins is not None
    negative = trimmed.margins < 0
    assert (trimmed.scores[negative] > 0).any()  # by margin, not by agreement
    assert trimmed.settings["trimmed"] == negative.sum() > 0
    assert not negative[trimmed.indices].any()
    assert kept("agreement").settings["trimmed"] == kept("random").settings["trimmed"] == 0
