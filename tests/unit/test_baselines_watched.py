"""Rival rules that read probabilities, and what was noted of them while the model was warmed up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from baseline_tasks import identity_task, mixed_task
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import beta

from benchmarks.quality.baselines import FIXED, WATCHED, Task
from benchmarks.quality.baselines.scores import aum_scores, ccs
from benchmarks.quality.baselines.task import drawn_evenly
from benchmarks.quality.baselines.trajectories import clusters_of, dual_scores


@pytest.fixture
def task() -> Task:
    return mixed_task()


def seen_of(probabilities: Any) -> NDArray[np.float32]:
    """Return logits (epochs, N, 2) whose softmax gives class 0 these probabilities (epochs, N)."""
    first = logit(np.asarray(probabilities, float))
    return np.stack([first, np.zeros_like(first)], axis=-1).astype(np.float32)


# What a task says of the warm-up.


def test_what_was_not_trained_on_is_what_the_model_says(task: Task) -> None:
    assert task.seen is not None
    left_out = np.isnan(task.seen).any(axis=2)
    assert left_out[0].sum() == 14
    np.testing.assert_array_equal(task.watched[~left_out], task.seen[~left_out])
    np.testing.assert_array_equal(task.watched[0, left_out[0]], task.logits[left_out[0]])
    assert replace(task, seen=None).watched.shape == (0, 700, 3)


def test_rules_that_watch_longer_are_the_same_rules() -> None:
    for name, epochs in WATCHED.items():
        plain, _, words = name.partition(", ")
        assert words == f"{epochs} epochs"
        assert FIXED[name] is FIXED[plain]


# The label's probability.


def test_highest_and_lowest_probability_of_the_label() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.5, 0.5]])
    task = identity_task(np.log(probabilities), [0, 0, 0, 1, 1], [2, 1])
    assert FIXED["highest label probability"](task).indices.tolist() == [0, 2, 4]
    assert FIXED["lowest label probability"](task).indices.tolist() == [1, 2, 3]


# AUM.


def test_aum_is_the_mean_margin_over_the_logits() -> None:
    seen = np.array([[[3, 1, 0], [0, 2, 5]], [[1, 2, 0], [0, 4, 1]]])
    task = identity_task([[7, 2, 9], [1, 6, 3]], [0, 1], [1, 1, 0], seen=seen)
    assert aum_scores(task).tolist() == [(2 - 1) / 2, (-3 + 3) / 2]
    for fewer in (seen[:1], seen[:0], None):  # the margin of the model itself
        assert aum_scores(replace(task, seen=fewer)).tolist() == [-2, 3]


def test_ccs_on_aum_takes_the_least_margin_as_the_hardest(task: Task) -> None:
    chosen = FIXED["ccs on aum"](task).indices
    aum = aum_scores(task)
    assert np.array_equal(chosen, ccs(task, -aum).indices)
    for label, members, _ in task.members():
        kept = aum[chosen[task.classes[chosen] == label]]
        assert kept.min() >= np.sort(aum[members])[len(members) // 10]


# DUAL.


def test_dual_scores_are_means_over_windows() -> None:
    looks = np.random.default_rng(0).random((12, 5))
    windows = [looks[start : start + 10] for start in range(3)]
    expected = np.mean([(1 - one.mean(0)) * one.std(0) for one in windows], axis=0)
    np.testing.assert_allclose(dual_scores(looks), expected)
    few = looks[:3]  # fewer than a window are one
    np.testing.assert_allclose(dual_scores(few), (1 - few.mean(0)) * few.std(0))
    np.testing.assert_allclose(dual_scores(looks[:1]), 1 - looks[0])  # nothing to deviate from


def drawn_by_dual(task: Task, draws: int = 2_000) -> NDArray[np.float64]:
    """Return how often each example (N,) was the one that is kept."""
    picks = [FIXED["dual"](replace(task, seed=seed)).indices for seed in range(draws)]
    return np.bincount(np.concatenate(picks), minlength=len(task.classes)) / draws


def expected_of_dual(looks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the chance (N,) of each of few examples where one is kept, written from the paper."""
    mean = looks.mean(axis=0)
    scores = (1 - mean) * looks.std(axis=0)
    pruned = 1 - 1 / len(mean)
    second = 15 * (1 - mean.mean()) * (1 - pruned**5.5)  # all of these few are anchors
    weights = beta.pdf(mean, 16 - second, second) * scores
    return np.asarray(weights / weights.sum())


def test_dual_draws_by_score_and_beta() -> None:
    looks = np.array([[0.2, 0.5, 0.6, 0.7, 0.9], [0.6, 0.5, 0.8, 0.9, 0.98]])
    task = identity_task(np.zeros((5, 2)), [0] * 5, [1, 0], seen=seen_of(looks))
    expected = expected_of_dual(looks)
    assert expected[1] == 0  # certain
    assert expected[3] > 0.4  # easy, and yet in doubt
    np.testing.assert_allclose(drawn_by_dual(task), expected, atol=0.04)


def test_dual_looks_again_after_one_epoch() -> None:
    looks = np.array([[0.3, 0.4, 0.8], [0.9, 0.6, 0.7]])
    task = identity_task(seen_of(looks)[1], [0] * 3, [1, 0], seen=seen_of(looks)[:1])
    np.testing.assert_allclose(drawn_by_dual(task), expected_of_dual(looks), atol=0.04)


def test_dual_takes_easier_ones_the_fewer_it_keeps() -> None:
    middle = np.linspace(0.1, 0.9, 700)  # all of one deviation
    looks = np.stack([middle - 0.05, middle + 0.05])
    task = identity_task(np.zeros((700, 2)), [0] * 700, [1, 0], seen=seen_of(looks))
    few, more = (
        middle[FIXED["dual"](replace(task, quotas=np.array([kept, 0]))).indices].mean()
        for kept in (20, 200)
    )
    assert few > 0.7
    assert more < 0.5


# SmallToLarge.


def test_draws_are_even_where_there_are_enough() -> None:
    groups = np.repeat([4, 1, 2], [60, 25, 5])
    chosen = drawn_evenly(np.arange(90), groups, 30)
    assert np.bincount(groups[chosen]).tolist() == [0, 12, 5, 0, 13]
    assert drawn_evenly(np.arange(90), groups, 90).size == 90


def test_small_to_large_draws_evenly_from_clusters_of_losses() -> None:
    probabilities = np.concatenate(
        [
            np.tile([[0.5], [0.9]], 60),  # learnt
            np.tile([[0.9], [0.5]], 25),  # forgotten
            np.tile([[0.1], [0.1]], 5),  # never learnt
            [[0.001], [0.999]],  # alone: an outlier
        ],
        axis=1,
    )
    task = identity_task(np.zeros((91, 2)), [0] * 91, [30, 0], seen=seen_of(probabilities))
    chosen = FIXED["small to large"](task).indices
    sizes = np.histogram(chosen, [0, 60, 85, 90, 91])[0]
    assert sizes.tolist() == [13, 12, 5, 0]
    everything = FIXED["small to large"](replace(task, quotas=np.array([91, 0])))
    assert everything.indices.tolist() == list(range(91))


def test_small_to_large_without_watching_clusters_the_losses_of_the_model() -> None:
    logits = np.repeat([[4.0, 0.0], [0.0, 0.0], [-4.0, 0.0]], [50, 30, 20], axis=0)
    seen = np.random.default_rng(0).normal(size=(1, 100, 2))  # one epoch is not looked at
    chosen = FIXED["small to large"](identity_task(logits, [0] * 100, [30, 0], seen=seen)).indices
    assert np.histogram(chosen, [0, 50, 80, 100])[0].tolist() == [10, 10, 10]


def test_clusters_are_no_more_than_different_rows() -> None:
    rows = np.repeat([[0.0, 1.0], [5.0, 5.0]], 4, axis=0)
    found = clusters_of(rows, 0)
    assert len(set(found[:4])) == len(set(found[4:])) == 1
    assert found[0] != found[4]
    assert set(clusters_of(np.random.default_rng(0).random((400, 1)), 0)) == set(range(100))
