"""What the probability of a label does to an example: the trim, and its mass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sage_torch.passes.rating import Rating
from sage_torch.passes.readout import FeatureSums, Readout, calibration

RANDOM = np.random.default_rng(0)
GROUPS = np.repeat(np.arange(2, dtype=np.int32), 500)
P = np.sort(RANDOM.beta(2, 1, (2, 500)).astype(np.float32), axis=1).ravel()


def readout(rho: float = 0.0, skill: float = 0.5, *, is_trained: bool = True) -> Readout:
    nothing = np.zeros(0)
    made = Readout(nothing, nothing, np.zeros((1, 4)), np.zeros((1, 1)), None, rho=rho, skill=skill)
    return replace(made, is_trained=is_trained, of_sample=P)


def rated(keep: float, *, has_budget: bool = True, **of: float) -> Rating:
    shares = np.array([keep, 1.0])
    return Rating.of(readout(**of), GROUPS, shares, has_budget=has_budget)


def left(rating: Rating, group: int) -> float:
    return float((rating.quality(P, GROUPS) >= 0)[group == GROUPS].mean())


def test_clean_labels_go_only_where_the_budget_is_small() -> None:
    shares = [left(rated(keep), 0) for keep in (0.02, 0.15, 0.5, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.8
    hard = replace(readout(), of_sample=P**4)
    rating = Rating.of(hard, GROUPS, np.array([0.02, 1.0]), has_budget=True)
    of_class = (rating.quality(P**4, GROUPS) >= 0)[GROUPS == 0]
    assert of_class.mean() == pytest.approx(0.7, abs=0.01)  # at most three tenths go
    assert shares[-1] == 1.0
    assert left(rated(0.02), 1) == 1.0  # all of this class are kept
    assert left(rated(0.02, has_budget=False), 0) == 1.0  # a turn shows them all


def test_more_goes_where_more_is_wrong_but_nothing_better_than_a_guess() -> None:
    shares = [left(rated(1.0, rho=rho), 0) for rho in (0.0, 0.1, 0.2, 0.4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0 > shares[1]
    for rho in (0.1, 0.2, 0.4):
        rating = rated(1.0, rho=rho)
        assert 1 - left(rating, 0) <= rho * (1.5 - rho) + 0.01
        assert rating.quality(np.array([0.25], np.float32), GROUPS[:1])[0] >= -1e-6


def test_masses_fall_with_what_is_learnt_and_with_what_is_wrong() -> None:
    p = np.array([0.05, 0.3, 0.6, 0.95, 1.0], np.float32)
    clean, noisy = (rated(0.25, rho=rho).masses(p) for rho in (0.0, 0.15))
    assert (np.diff(clean) < 0).all()
    assert (clean > 0).all()
    assert noisy[0] < noisy[1]  # it is wrong rather than hard
    assert noisy[2] == pytest.approx(clean[2], rel=0.1)
    flat = rated(0.25, skill=0.0).masses(p)
    assert flat == pytest.approx(np.ones(5))  # what a readout without skill says is ignored


def test_untrained_features_without_skill_trim_nothing() -> None:
    assert left(rated(0.05, rho=0.3, skill=0.0, is_trained=False), 0) == 1.0
    assert left(rated(0.05, rho=0.3, skill=0.0), 0) < 0.8
    assert left(rated(0.05, rho=0.3, skill=0.5, is_trained=False), 0) < 0.8


def test_settings_count_both_terms() -> None:
    rating = rated(0.05, rho=0.2)
    found = rating.settings(P, GROUPS)
    below = int((rating.quality(P, GROUPS) < 0).sum())
    assert found["trimmed_by_noise"] + found["trimmed_by_budget"] == below
    assert found["trimmed_by_noise"] > 0
    assert found["threshold"] > 0


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.4])
def test_noise_is_estimated(wrong: float) -> None:
    random = np.random.default_rng(3)
    true = random.integers(0, 5, 4_000)
    scores = 3.0 * np.eye(5)[true] + random.normal(size=(4_000, 5))
    flipped = random.random(4_000) < wrong
    labels = np.where(flipped, (true + random.integers(1, 5, 4_000)) % 5, true)
    of = calibration(scores, labels.astype(np.int32))
    assert of.rho == pytest.approx(wrong, abs=0.03)
    assert (of.noise_share > 0) == (wrong > 0)


def test_a_constant_feature_and_one_alone_do_no_harm() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 200).astype(np.int32)
    sums = FeatureSums(1, np.arange(200))
    sums.add(torch.ones(200, 1), labels, np.arange(200))
    of = Readout.of(sums, labels)
    assert np.isfinite(of.of_sample).all()
    assert of.skill < 0.05
    assert of.reduced(np.zeros((3, 1), np.float32)).tolist() == [[0.0]] * 3
