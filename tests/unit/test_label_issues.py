"""Which labels are taken to be wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset
from sage_torch.selection.issues import label_issues

N = 100
SCORES = np.random.default_rng(0).permutation(N).astype(np.float32) / N
LABELS = np.zeros(N, np.int64)
OTHERS = np.ones(N, np.int64)
ALL_DOUBTED = np.ones(N, np.float32)


def test_the_lowest_scores_are_issues() -> None:
    found = label_issues(SCORES, ALL_DOUBTED, LABELS, OTHERS, 0.2)
    assert found.sum() == 27  # 0.2 (1.57 - 0.2) of 100
    assert SCORES[found].max() < SCORES[~found].min()


def test_no_more_than_are_probably_wrong() -> None:
    is_wrong = np.where(np.arange(N) < 7, 0.21, 0.2).astype(np.float32)
    found = label_issues(SCORES, is_wrong, LABELS, OTHERS, 0.2)
    assert found.sum() == 7
    assert SCORES[found].max() < SCORES[~found].min()
    assert not label_issues(SCORES, np.zeros(N, np.float32), LABELS, OTHERS, 0.2).any()
    assert not label_issues(SCORES, ALL_DOUBTED, LABELS, OTHERS, 0.0).any()


def test_a_label_that_is_predicted_is_no_issue() -> None:
    predicted = np.where(SCORES < 0.05, LABELS, OTHERS)
    found = label_issues(SCORES, ALL_DOUBTED, LABELS, predicted, 0.2)
    assert found.sum() == 27 - 5
    assert SCORES[found].min() >= 0.05


def test_equal_scores_go_in_order() -> None:
    found = label_issues(np.zeros(N, np.float32), ALL_DOUBTED, LABELS, OTHERS, 0.2)
    assert np.flatnonzero(found).tolist() == list(range(27))


def test_label_scores_are_saved_and_checked(network: nn.Module, blobs: TensorDataset) -> None:
    selection = select_subset(network, blobs, 0.25, progress=False)
    scores = np.linspace(0, 1, len(blobs), dtype=np.float32)
    scored = dataclasses.replace(selection, label_scores=scores)
    loaded = Selection.from_bytes(scored.to_bytes())
    assert loaded.label_scores is not None
    assert loaded.label_scores.tolist() == scores.tolist()
    for wrong in (scores + 0.1, scores[1:], scores.astype(np.float64)):
        damaged = dataclasses.replace(selection, label_scores=wrong).to_bytes()
        with pytest.raises(ValueError, match="label_scores"):
            Selection.from_bytes(damaged)
