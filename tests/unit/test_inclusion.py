"""Inclusion probabilities: they sum to the quota, and epochs follow them, exactly k at a time."""

from __future__ import annotations

import numpy as np
import pytest

import sage_torch._core as _core
from sage_torch.selection import inclusion
from sage_torch.selection.draws import Draws

SIZES = [(1_000, 500), (1_000, 37), (1_000, 999), (10, 9), (7, 7), (3, 1), (1, 1)]


def some(n: int, seed: int = 0) -> np.ndarray:
    """Return masses of which few are large and many next to nothing."""
    return np.random.default_rng(seed).random(n) ** 6 + 1e-6


@pytest.mark.parametrize(("n", "quota"), SIZES)
def test_probabilities_sum_to_the_quota(n: int, quota: int) -> None:
    for masses in (some(n), np.ones(n), np.full(n, 1e-6)):
        found = inclusion.probabilities(masses, quota)
        assert found.sum() == pytest.approx(quota)
        assert (found <= 1).all()
        below = found < 1 - 1e-9
        ratios = found[below] / masses[below]  # what is below 1 is in proportion
        assert np.allclose(ratios, ratios[:1])
        if below.any() and not below.all():
            assert masses[~below].min() >= masses[below].max()


@pytest.mark.parametrize(("n", "quota"), SIZES)
def test_epochs_follow_the_probabilities(n: int, quota: int) -> None:
    found = inclusion.probabilities(some(n, 1), quota)
    order = _core.Permutation(n, 3, 0).take(0, n)
    epochs, seen = 300, np.zeros(n)
    for epoch in range(epochs):
        drawn = inclusion.drawn(found, order, epoch, quota)
        assert len(np.unique(drawn)) == len(drawn) == quota
        seen[drawn] += 1
    # Random draws would miss by a standard deviation of up to sqrt(300) / 2 = 9.
    assert np.abs(seen - epochs * found).max() < 4


def test_equal_probabilities_rotate() -> None:
    order, seen = _core.Permutation(600, 0, 0).take(0, 600), np.zeros(600)
    for epoch in range(1, 31):
        seen[inclusion.drawn(np.full(600, 0.25), order, epoch, 150)] += 1
        assert np.ptp(seen) <= 2


def test_the_exponent_falls_while_the_data_pass_by() -> None:
    hard, right = np.array([0.01, 0.81, 0.81], np.float32), np.array([1, 1, 0], np.float32)
    at_once = inclusion.masses(hard, right, 0.5, 0.0)
    np.testing.assert_allclose(at_once, [0.1, 0.9, 1e-6], rtol=1e-5)
    half_way = inclusion.masses(hard, right, 0.5, inclusion.PASSES / 2)
    np.testing.assert_allclose(half_way, [0.1**0.5, 0.9**0.5, 1e-6], rtol=1e-5)
    for passed in (inclusion.PASSES, 100.0):
        np.testing.assert_array_equal(inclusion.masses(hard, right, 0.5, passed), [1, 1, 1e-6])


def draws(**changes: object) -> Draws:
    """Return two classes of 60 and 40 examples, of which every second one is wrong."""
    given: dict[str, object] = {
        "draw": "rotate",
        "order": np.arange(100),
        "starts": np.array([0, 60, 100]),
        "classes": np.array([0, 1]),
        "quotas": np.array([20, 30]),
        "seed": 0,
        "is_herded": False,
        "hard": np.linspace(0, 1, 100, dtype=np.float32),
        "right": (np.arange(100) % 2).astype(np.float32),
        "exponent": 0.5,
    }
    return Draws(**{**given, **changes})  # type: ignore[arg-type]


def test_draws_show_what_is_wrong_only_where_a_quota_needs_it() -> None:
    seen = np.zeros(100)
    for epoch in range(50):
        drawn = draws().epoch(epoch)
        assert (np.diff(drawn) > 0).all()
        assert np.bincount(drawn // 60, minlength=2).tolist() == [20, 30]
        seen[drawn] += 1
    assert not seen[:60:2].any()
    assert (seen[1:60:2] > 0).all()
    assert (seen[61::2] == 50).all()  # 20 right ones
    assert seen[60::2].sum() == 50 * 10


def test_draws_begin_with_what_is_hard_and_end_evenly() -> None:
    all_right = draws(right=np.ones(100, np.float32))

    def seen(first: int) -> np.ndarray:
        epochs = [all_right.epoch(epoch) for epoch in range(first, first + 5)]
        return np.bincount(np.concatenate(epochs), minlength=100)[:60]

    assert seen(0)[30:].sum() > 1.3 * seen(0)[:30].sum()
    assert abs(seen(20)[30:].sum() - 50) <= 5  # 20 epochs of a half: the exponent is 0


@pytest.mark.parametrize(
    "changes",
    [
        {"right": None},
        {"hard": np.zeros(100)},
        {"hard": np.zeros(99, np.float32)},
        {"right": np.full(100, np.nan, np.float32)},
        {"right": np.full(100, 1.5, np.float32)},
        {"exponent": 2.0},
        {"exponent": "a"},
        {"draw": "random"},
    ],
    ids=str,
)
def test_damaged_worths_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected hard and right to be float32"):
        draws(**changes)
