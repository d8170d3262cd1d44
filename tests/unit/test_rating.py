"""What the probability of a label does to an example: the trim, and its mass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sage_torch.passes.calibration import ENOUGH, NOT_CALIBRATED, Calibration, Judged, calibrated
from sage_torch.passes.rating import Rating
from sage_torch.passes.readout import FeatureSums, Readout

RANDOM = np.random.default_rng(0)
GROUPS = np.repeat(np.arange(2, dtype=np.int32), 500)
P = np.sort(RANDOM.beta(2, 1, (2, 500)).astype(np.float32), axis=1).ravel()


def judged(p: np.ndarray[Any, Any], rho: float = 0.0) -> Judged:
    """What is known of labels of these probabilities, of four classes that are mistaken evenly."""
    odds = rho / (1 - rho) * (1 - p) / 3
    is_wrong = np.minimum(1, odds / p).astype(np.float32)
    return Judged(p, is_wrong, np.zeros(len(p), np.int32), p)


def known(of: Calibration, sample: Judged, classes: int) -> Readout:
    nothing = np.zeros(0)
    return Readout(
        nothing, nothing, np.zeros((1, classes)), np.zeros((1, 1)), None, of, of_sample=sample
    )


def rated(
    keep: float, *, p: Any = P, rho: float = 0.0, skill: float = 0.5, has_budget: bool = True
) -> Rating:
    readout = known(replace(NOT_CALIBRATED, rho=rho, skill=skill), judged(p, rho), 4)
    return Rating.of(readout, GROUPS, np.array([keep, 1.0]), has_budget=has_budget)


def left(rating: Rating, group: int, *, p: Any = P, rho: float = 0.0) -> float:
    return float((rating.quality(judged(p, rho), GROUPS) >= 0)[group == GROUPS].mean())


def test_clean_labels_go_only_where_the_budget_is_small() -> None:
    shares = [left(rated(keep), 0) for keep in (0.02, 0.15, 0.5, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.8
    assert left(rated(0.02, p=P**4), 0, p=P**4) == pytest.approx(0.7, abs=0.01)  # no more than that
    assert shares[-1] == 1.0
    assert left(rated(0.02), 1) == 1.0  # all of this class are kept
    assert left(rated(0.02, has_budget=False), 0) == 1.0  # a turn shows them all


def test_more_goes_where_more_is_wrong() -> None:
    shares = [left(rated(1.0, rho=rho), 0, rho=rho) for rho in (0.0, 0.1, 0.2, 0.4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0 > shares[1]
    for rho, share in zip((0.1, 0.2, 0.4), shares[1:], strict=True):
        assert 1 - share <= rho * (1.5 - rho) + 0.01


def test_what_was_dropped_comes_back_by_how_good_it_is() -> None:
    rating, of_labels = rated(0.02, rho=0.2), judged(P, 0.2)
    quality = rating.quality(of_labels, GROUPS)
    gone = np.flatnonzero(quality < 0)
    good = of_labels.probabilities * (1 - of_labels.is_wrong)
    assert np.array_equal(np.argsort(quality[gone]), np.argsort(good[gone]))


def test_masses_fall_with_what_is_learnt_and_with_what_is_wrong() -> None:
    p, one_class = np.array([0.05, 0.3, 0.6, 0.95, 1.0], np.float32), np.zeros(5, np.int32)
    clean, noisy = (rated(0.25, rho=rho).masses(judged(p, rho), one_class) for rho in (0.0, 0.15))
    assert (np.diff(clean) < 0).all()
    assert (clean > 0).all()
    assert noisy[0] < noisy[1]  # it is wrong rather than hard
    assert noisy[2] == pytest.approx(clean[2], rel=0.1)
    flat = rated(0.25, skill=0.0).masses(judged(p), one_class)
    assert flat == pytest.approx(np.ones(5))  # what a readout without skill says is ignored


def test_at_large_budgets_what_is_contradicted_counts_less() -> None:
    p, one_class = np.array([0.01, 0.3, 0.6, 0.95], np.float32), np.zeros(4, np.int32)
    small, between, large = (
        rated(keep).masses(judged(p), one_class).tolist() for keep in (0.25, 0.4, 0.5)
    )
    assert max(small) == small[0]
    assert max(large) == large[1] > large[0]
    assert large[0] < between[0] < small[0]
    whole = rated(0.5).masses(judged(p), np.ones(4, np.int32))  # all of this class are kept
    assert whole == pytest.approx(large)
    turn = rated(0.5, has_budget=False).masses(judged(p), one_class)
    assert turn == pytest.approx(small)


def test_both_terms_are_counted() -> None:
    rating, of_labels = rated(0.05, rho=0.2), judged(P, 0.2)
    by_noise, by_budget = rating.counts(of_labels, GROUPS)
    assert by_noise + by_budget == int((rating.quality(of_labels, GROUPS) < 0).sum())
    assert by_noise > 0
    assert rating.threshold > 0


def noisy(wrong: float, to_next: bool) -> tuple[Any, Any, Any]:
    """Scores of five classes that are told apart, and labels of which some are wrong."""
    random = np.random.default_rng(3)
    true = random.integers(0, 5, 4_000)
    scores = 3.0 * np.eye(5)[true] + random.normal(size=(4_000, 5))
    is_wrong = random.random(4_000) < wrong
    other = 1 if to_next else random.integers(1, 5, 4_000)
    return scores, np.where(is_wrong, (true + other) % 5, true).astype(np.int32), is_wrong


# 40 % to the next class leave two labels nearly alike.
@pytest.mark.parametrize(
    ("wrong", "to_next"), [(0.0, False), (0.2, False), (0.2, True), (0.4, False)]
)
def test_wrong_labels_are_counted_and_found(wrong: float, to_next: bool) -> None:
    scores, labels, is_wrong = noisy(wrong, to_next)
    if to_next:  # as a readout learns them
        scores = scores + 2.0 * wrong * np.roll(scores, 1, axis=1)
    of = calibrated(scores, labels)
    assert of.rho == pytest.approx(wrong, abs=0.06)
    found = of.judged(scores, labels).is_wrong > 0.25
    if wrong:
        assert found[is_wrong].mean() > 0.85
        assert found[~is_wrong].mean() < 0.15
    else:
        assert found.mean() < 0.01


def test_label_scores_follow_both_witnesses_and_the_trim_does_not() -> None:
    scores, labels, is_wrong = noisy(0.2, to_next=False)
    of = calibrated(scores, labels)
    alone = of.judged(scores, labels)
    by_rank = alone.label_scores.argsort()
    assert is_wrong[by_rank[: is_wrong.sum()]].mean() > 0.9
    assert (alone.label_scores > 0).all()
    assert (alone.label_scores < 1).all()
    low, high = (of.judged(scores, labels, np.full(4_000, own, np.float32)) for own in (0.01, 1.0))
    assert (low.label_scores < high.label_scores).all()
    assert (low.label_scores < alone.label_scores)[alone.probabilities > 0.01].all()
    for name in ("probabilities", "is_wrong", "predicted"):
        assert np.array_equal(getattr(low, name), getattr(alone, name))
    nothing = of.judged(scores, labels, np.zeros(4_000, np.float32)).label_scores
    assert np.isfinite(nothing).all()


def test_what_labels_are_flipped_to_lowers_label_scores() -> None:
    scores, labels, is_wrong = noisy(0.2, to_next=True)
    of = calibrated(scores, labels)
    assert of.flips is not None
    evenly = replace(of, flips=None)
    tilted, even = (each.judged(scores, labels).label_scores for each in (of, evenly))
    assert (tilted < even)[is_wrong].mean() > 0.95


def test_what_untrained_features_fail_to_explain_is_no_sign() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 2_000).astype(np.int32)
    scores = random.normal(size=(2_000, 3)) * 0.05 + 0.01 * np.eye(3)[labels]
    assert calibrated(scores, labels).rho > 0.2
    of = calibrated(scores, labels, is_trained=False)
    assert of.rho < 0.1 > of.trust


def weak(noise: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores of two classes that say little, and labels of which a share is flipped."""
    random = np.random.default_rng(2)
    true = random.integers(0, 2, 4_000)
    scores = 0.1 * np.eye(2)[true] + random.normal(size=(4_000, 2)) * 0.12
    is_flipped = random.random(4_000) < noise
    return scores, np.where(is_flipped, 1 - true, true).astype(np.int32)


def test_a_weak_readout_is_not_trusted_unless_many_labels_are_wrong() -> None:
    clean, noisy = (calibrated(*weak(noise)) for noise in (0.0, 0.3))
    assert max(clean.skill, noisy.skill) < ENOUGH
    assert clean.trust == pytest.approx((clean.skill / ENOUGH) ** 2)
    assert clean.rho < 0.05
    assert (noisy.trust, noisy.rho > 0.1) == (1.0, True)


def test_a_readout_that_is_not_trusted_trims_less_of_what_is_hard() -> None:
    scores, labels = weak(0.0)
    of = calibrated(scores, labels)
    shares, sample = np.full(2, 0.2), of.judged(scores, labels)
    trimmed = []
    for trust in (1.0, 0.25, 0.0):
        readout = known(replace(of, trust=trust), sample, 2)
        rating = Rating.of(readout, labels, shares, has_budget=True)
        trimmed.append(sum(rating.counts(sample, labels)))
    assert trimmed[0] > 2 * trimmed[1] > 0
    assert trimmed[1] > trimmed[2]


def test_a_model_that_knows_nearly_all_leaves_nothing_to_learn() -> None:
    scores, labels, _ = noisy(0.0, to_next=False)
    found = [
        calibrated(scores, labels, own_loss=own_loss).to_learn for own_loss in (None, 2.0, 0.01)
    ]
    assert found == [1.0, 1.0, 0.0]
    sure = 20.0 * np.eye(5)[labels] + scores  # the readout knows all, and more than the model
    assert calibrated(sure, labels, own_loss=0.01).to_learn == 0.0
    of = calibrated(scores, labels)
    sample = of.judged(scores, labels)
    for to_learn in (1.0, 0.0):
        readout = known(replace(of, to_learn=to_learn), sample, scores.shape[1])
        rating = Rating.of(readout, labels, np.full(scores.shape[1], 0.5), has_budget=True)
        masses, right = rating.masses(sample, labels), 1 - sample.is_wrong
        assert np.allclose(masses, np.maximum(right, 1e-6)) == (to_learn == 0.0)


def test_a_constant_feature_and_one_alone_do_no_harm() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 200).astype(np.int32)
    sums = FeatureSums(1, np.arange(200))
    sums.add(torch.ones(200, 1), labels, np.arange(200))
    of = Readout.of(sums, labels)
    assert np.isfinite(of.of_sample.probabilities).all()
    assert of.calibration.skill < 0.05
    assert of.reduced(np.zeros((3, 1), np.float32)).tolist() == [[0.0]] * 3
