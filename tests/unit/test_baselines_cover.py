"""Rival rules that cover a class or match its gradient, against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from baseline_tasks import QUOTAS, identity_task, mixed_task
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial.distance import cdist

from benchmarks.quality.baselines import FIXED, Task, craig, gradmatch
from benchmarks.quality.baselines.cover import farthest_first, herded


@pytest.fixture
def task() -> Task:
    return mixed_task()


def class_gradients(task: Task, label: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the members of a class and their gradients `(p_c - 1) [h, 1]`, by autograd."""
    members = torch.nonzero(task.labels == label)[:, 0]
    last: Any = task.model[2]  # type: ignore[index]
    rows = []
    for at in members:
        loss = F.cross_entropy(task.model(task.images[at : at + 1]), task.labels[at : at + 1])
        weight, bias = torch.autograd.grad(loss, [last.weight, last.bias])
        rows.append(torch.cat([weight[label], bias[label : label + 1]]))
    return members.numpy(), torch.stack(rows).double().numpy()


# Covers.


def test_k_center_on_a_line() -> None:
    line = np.arange(11.0)[:, None]
    assert farthest_first(line, 4).tolist() == [5, 0, 10, 2]


def test_k_center_is_greedy_by_distance(task: Task) -> None:
    members, quota = np.flatnonzero(task.classes == 0), 90
    features = task.features[members]
    distances = cdist(features, features)
    picks = [int(np.argmin(np.linalg.norm(features - features.mean(0), axis=1)))]
    while len(picks) < quota:
        picks.append(int(np.argmax(distances[:, picks].min(axis=1))))
    assert farthest_first(features, quota).tolist() == picks
    chosen = FIXED["k_center"](task).indices
    assert set(chosen[task.classes[chosen] == 0]) == set(members[picks])


def test_k_center_takes_copies_last() -> None:
    rows = np.array([[0.0], [0.0], [3.0], [0.0]])
    assert farthest_first(rows, 4).tolist() == [0, 2, 1, 3]


def test_herding_follows_the_mean(task: Task) -> None:
    members, quota = np.flatnonzero(task.classes == 0), 90
    units = F.normalize(torch.from_numpy(task.features[members]), dim=1).numpy()
    assert np.all(np.linalg.norm(units, axis=1) > 0.99)
    picks: list[int] = []
    while len(picks) < quota:  # for rows of one length, the pick that brings the mean nearest
        gaps = [
            np.inf if row in picks else np.linalg.norm(units[[*picks, row]].mean(0) - units.mean(0))
            for row in range(len(units))
        ]
        picks.append(int(np.argmin(gaps)))
    assert herded(units, quota).tolist() == picks
    chosen = FIXED["feature herding"](task).indices
    assert set(chosen[task.classes[chosen] == 0]) == set(members[picks])


def test_moderate_keeps_what_is_at_the_median_distance() -> None:
    # Class 0 on a line around 0, at distances 4, 2, 1, 1, 2, 4: the median is 2.
    line = [[-4.0, 0], [-2, 0], [-1, 0], [1, 0], [2, 0], [4, 0]]
    # Class 1 around (0, 10), at distances 0, 1, 1, 9, 9: the median is 1.
    cross = [[0.0, 10], [1, 10], [-1, 10], [0, 19], [0, 1]]
    task = identity_task(line + cross, [0] * 6 + [1] * 5, [2, 3])
    assert FIXED["moderate"](task).indices.tolist() == [1, 4, 6, 7, 8]


def test_craig_takes_one_of_each_cluster_and_weighs_it_by_the_cluster() -> None:
    centres = np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 5]])
    logits = np.repeat(centres, [5, 3, 2], axis=0)
    logits += np.random.default_rng(0).normal(0, 1e-3, logits.shape)
    chosen = FIXED["craig"](identity_task(logits, [0] * 10, [3, 0, 0]))
    assert np.digitize(chosen.indices, [5, 8]).tolist() == [0, 1, 2]
    assert chosen.weights is not None
    np.testing.assert_allclose(chosen.weights, [1.5, 0.9, 0.6], rtol=1e-6)


def test_facility_location_is_the_plain_greedy_one() -> None:
    rows = np.random.default_rng(3).normal(size=(60, 4))
    distances = cdist(rows, rows)
    np.testing.assert_allclose(craig.pairwise_distances(rows), distances, atol=1e-6)
    distances = np.rint(distances * (2**30 / distances.max()))  # exact sums: ties are ties
    picks: list[int] = []
    while len(picks) < 60:
        sums = [
            np.inf if row in picks else distances[:, [*picks, row]].min(axis=1).sum()
            for row in range(60)
        ]
        picks.append(int(np.argmin(sums)))
    assert craig.facility_location(distances, 60).tolist() == picks


def test_facility_location_is_near_the_best() -> None:
    rows = np.random.default_rng(4).normal(size=(12, 2))
    distances = cdist(rows, rows)

    def value(picks: Any) -> float:
        return float((distances.max() - distances[:, picks].min(axis=1)).sum())

    best = max(value(list(picks)) for picks in itertools.combinations(range(12), 4))
    assert value(craig.facility_location(distances, 4)) >= (1 - 1 / np.e) * best


def test_craig_shares_quotas_over_blocks(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FIXED["craig"](task).indices
    monkeypatch.setattr(craig, "LARGEST_BLOCK", 32)
    chosen = FIXED["craig"](task)
    assert np.bincount(task.classes[chosen.indices]).tolist() == QUOTAS.tolist()
    assert len(np.unique(chosen.indices)) == len(chosen.indices)
    assert not np.array_equal(chosen.indices, whole)


# GradMatch.


@pytest.mark.parametrize(("offset", "ridge"), [(0.0, 0.5), (0.3, 0.01), (1.0, 2.0)])
def test_pursuit_without_limit_is_non_negative_ridge_regression(
    offset: float, ridge: float
) -> None:
    rows = np.random.default_rng(5).normal(offset, 1, (40, 7))
    target = rows.sum(axis=0) + np.arange(7) ** 2
    found = gradmatch.matching_pursuit(rows, target, 40, ridge=ridge)
    # |target - w rows|^2 + ridge |w|^2 as least squares with one more row an example.
    stacked = np.vstack([rows.T, np.sqrt(ridge) * np.eye(40)])
    best, _ = nnls(stacked, np.concatenate([target, np.zeros(40)]))
    np.testing.assert_allclose(found, best, atol=1e-9 * best.max())
    assert 0 < np.count_nonzero(best) < 40


def test_pursuit_with_a_limit_fits_what_it_chose() -> None:
    rows = np.abs(np.random.default_rng(6).normal(size=(50, 9)))
    target = rows.sum(axis=0)
    for count in (1, 2, 5, 12):
        found = gradmatch.matching_pursuit(rows, target, count)
        (support,) = np.nonzero(found)
        assert len(support) == count
        stacked = np.vstack([rows[support].T, np.sqrt(0.5) * np.eye(count)])
        best, _ = nnls(stacked, np.concatenate([target, np.zeros(count)]))
        np.testing.assert_allclose(found[support], best, rtol=1e-8)
        if count == 1:
            assert support[0] == np.argmax(rows @ target)


def test_pursuit_finds_the_parts_of_a_sum() -> None:
    rows = np.eye(6)
    found = gradmatch.matching_pursuit(rows, 3 * rows[2] + rows[5] - rows[1], 6, ridge=0.5)
    np.testing.assert_allclose(found, [0, 0, 2, 0, 0, 2 / 3], atol=1e-12)  # 1 / (1 + ridge) each


def test_gradmatch_matches_the_gradient_of_its_class(task: Task) -> None:
    chosen = FIXED["gradmatch"](task)
    assert chosen.weights is not None
    for label, quota in ((0, 90), (2, 44)):
        members, rows = class_gradients(task, label)
        place = np.searchsorted(members, chosen.indices[task.classes[chosen.indices] == label])
        weights = chosen.weights[task.classes[chosen.indices] == label]
        # The rows are the right ones: pursuit on them, scaled, gives the same subset.
        scaled = rows / np.sqrt((rows**2).sum(axis=1).mean())
        found = gradmatch.matching_pursuit(scaled, scaled.sum(axis=0), quota)
        assert set(np.flatnonzero(found)) <= set(place)
        # And its direction is nearer to the whole class's than that of random subsets.
        target = rows.sum(axis=0) / np.linalg.norm(rows.sum(axis=0))
        draws = np.random.default_rng(0)
        sums = [rows[draws.permutation(len(rows))[:quota]].sum(axis=0) for _ in range(20)]
        cosines = [target @ part / np.linalg.norm(part) for part in [weights @ rows[place], *sums]]
        assert cosines[0] == max(cosines)


def test_gradmatch_fills_up_at_random_with_the_mean_weight() -> None:
    # A margin of 800 gives a gradient of exactly 0: only the first three can be matched.
    logits = np.array([[0.0, 1], [1, 0], [0, 0]] + [[800.0, 0]] * 40)
    task = identity_task(logits, [0] * 43, [9, 0])
    chosen = FIXED["gradmatch"](task)
    assert chosen.weights is not None
    assert chosen.indices[:3].tolist() == [0, 1, 2]
    assert len(set(chosen.weights[:3].tolist())) == 3
    np.testing.assert_allclose(chosen.weights[3:], chosen.weights[:3].mean(), rtol=1e-6)
    others = FIXED["gradmatch"](replace(task, seed=1)).indices
    assert others[3:].tolist() != chosen.indices[3:].tolist()
    nothing = FIXED["gradmatch"](identity_task(logits[3:], [0] * 40, [9, 0]))
    assert nothing.weights is not None
    assert nothing.weights.tolist() == [1] * 9
