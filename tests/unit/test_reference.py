"""The oracle against what is known without it: theorems, hand counts, cases worked on paper."""

from __future__ import annotations

import numpy as np
import pytest
from reference import (
    FrequentDirections,
    agreement,
    bandwidth,
    class_quotas,
    consensus,
    herd,
    herding,
    top_k,
    trimmed,
)


def on_circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def sketched(rows: np.ndarray, size: int, block: int) -> FrequentDirections:
    sketch = FrequentDirections(size, rows.shape[1], block)
    sketch.update(rows)
    return sketch


def assert_bound(rows: np.ndarray, sketch: FrequentDirections) -> None:
    """0 <= A^T A - S^T S <= shrinkage <= |A - A_k|^2 / (l - k) for every k < l."""
    matrix, size = sketch.matrix(), sketch.sketch_size
    error = np.linalg.eigvalsh(rows.T @ rows - matrix.T @ matrix)
    slack = 1e-12 * np.sum(rows**2)
    assert error[0] >= -slack
    assert error[-1] <= sketch.shrinkage + slack
    energy = np.linalg.svd(rows, compute_uv=False) ** 2
    for k in range(size):
        assert sketch.shrinkage <= energy[k:].sum() / (size - k) + slack


@pytest.mark.parametrize(
    ("size", "block", "count"), [(4, 8, 100), (5, 3, 101), (16, 1, 40), (20, 7, 90)]
)
def test_frequent_directions_bound(size: int, block: int, count: int) -> None:
    rows = np.random.default_rng(count).normal(size=(count, 12)) * np.linspace(3, 0.1, 12)
    assert_bound(rows, sketched(rows, size, block))


def test_merged_sketches_keep_the_bound() -> None:
    rows = np.random.default_rng(0).normal(size=(75, 10))
    left, right = sketched(rows[:31], 4, 8), sketched(rows[31:], 4, 8)
    before = right.matrix()
    left.merge(right)
    assert_bound(rows, left)
    assert left.rows_seen == 75
    assert left.squared_norm == pytest.approx(np.sum(rows**2))
    assert np.array_equal(right.matrix(), before)


def test_exact_below_its_rank_and_null_rows_are_zero() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 20))
    sketch = sketched(rows, 6, 7)
    matrix = sketch.matrix()
    np.testing.assert_allclose(matrix.T @ matrix, rows.T @ rows, atol=1e-10)
    assert sketch.shrinkage < 1e-20 * sketch.squared_norm
    assert np.all(matrix[3:] == 0)
    assert np.all(sketch.project(rows, "orthonormal")[:, 3:] == 0)


def test_reading_and_batch_boundaries_change_nothing() -> None:
    rows = np.random.default_rng(2).normal(size=(37, 9))
    whole, pieces = sketched(rows, 4, 6), FrequentDirections(4, 9, 6)
    for piece in np.array_split(rows, 11):
        pieces.update(piece)
        pieces.matrix(), pieces.project(piece), pieces.shrinkage
    assert np.array_equal(whole.matrix(), pieces.matrix())
    assert whole.shrinkage == pieces.shrinkage


def test_change_of_basis_moves_coordinates() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(24, 3)) @ rng.normal(size=(3, 9))
    sketch = sketched(rows[:12], 4, 12)
    old = sketch.project(rows[:12], "orthonormal")
    sketch.update(rows[12:])
    new = sketch.project(rows[:12], "orthonormal")
    np.testing.assert_allclose(old @ sketch.change_of_basis.T, new, atol=1e-10)


def test_consensus_and_agreement_by_hand() -> None:
    z = np.array([[2.0, 0], [0, 5], [-1, 0], [0, 0]])
    class_ids = np.array([0, 0, 2, 2])
    directions = consensus(z, class_ids, 3)
    np.testing.assert_allclose(directions, [[0.5**0.5, 0.5**0.5], [0, 0], [-1, 0]])
    np.testing.assert_allclose(agreement(z, class_ids, directions), [0.5**0.5, 0.5**0.5, 1, 0])


@pytest.mark.parametrize(
    ("counts", "budget", "mode", "expected"),
    [
        ([5, 3, 2], 5, "proportional", [3, 1, 1]),  # shares 2.5, 1.5, 1: the tie goes to class 0
        ([1, 1, 1], 2, "proportional", [1, 1, 0]),
        ([10, 1, 4], 9, "equal", [4, 1, 4]),  # class 1 is short by two, one each to the others
        ([10, 1, 4], 8, "equal", [4, 1, 3]),
        ([0, 2, 9], 11, "equal", [0, 2, 9]),
        ([0, 0], 0, "proportional", [0, 0]),
    ],
)
def test_quotas_by_hand(counts: list[int], budget: int, mode: str, expected: list[int]) -> None:
    assert class_quotas(counts, budget, mode).tolist() == expected


@pytest.mark.parametrize("mode", ["proportional", "equal"])
def test_quotas_sum_to_the_budget_and_fit_their_class(mode: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(300):
        counts = rng.integers(0, 20, size=rng.integers(1, 8))
        budget = int(rng.integers(0, counts.sum() + 1))
        quotas = class_quotas(counts, budget, mode)
        assert quotas.sum() == budget
        assert np.all((quotas >= 0) & (quotas <= counts))
        if mode == "equal":  # a class with room left is at most one below the fullest
            assert np.all(quotas[quotas < counts] >= quotas.max() - 1)


def test_quotas_beyond_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="budget of 0 to 3"):
        class_quotas([1, 2], 4)


def test_top_k_breaks_ties_by_index() -> None:
    scores, class_ids = [1.0, 2, 2, 0, 0, 5], np.array([0, 0, 0, 1, 1, 0])
    assert top_k(scores, class_ids, np.array([2, 1])).tolist() == [1, 3, 5]


def test_bandwidth_is_the_tenth_quantile() -> None:
    z = on_circle(0, 10, 30, 70, 150)  # 10 distances: index floor(0.1 * 9) = 0, that of 10 degrees
    assert bandwidth(3 * z) == pytest.approx(2 * np.sin(np.deg2rad(5)))
    assert bandwidth(on_circle(0, 0, 0, 60)) == pytest.approx(0.5)  # the mean of 0, 0, 0, 1, 1, 1
    for z in (on_circle(0, 0, 0), on_circle(0), np.zeros((0, 2))):
        assert bandwidth(z) == 1


def test_trim_never_goes_below_the_quota() -> None:
    scores = [0.5, -0.1, 0.2, -0.3, -0.1]
    assert trimmed(scores, 0, "negative").tolist() == [0, 2]
    assert trimmed(scores, 3, "negative").tolist() == [0, 1, 2]
    assert trimmed(scores, 0, 0.4).tolist() == [0, 1, 2]  # of the two at -0.1 the later one goes
    assert trimmed(scores, 0, 0.39).tolist() == [0, 1, 2, 4]
    assert trimmed(scores, 0, None).tolist() == [0, 1, 2, 3, 4]


def test_herding_worked_on_paper() -> None:
    """A group of three, a group of two, a loner; tau is one degree: groups do not see each other.

    With q = exp(-1/2): 6 mu = 1 + 2q at the centre of the three, 1 + q in the two, 1 alone. A pick
    lowers its own group below the rest: the centre, then the two (lower index), then the loner.
    """
    z = on_circle(0, 1, 2, 90, 91, 200)
    assert herd(z, 3).tolist() == [1, 3, 5]
    assert sorted(herd(z, 6).tolist()) == [0, 1, 2, 3, 4, 5]


def test_herding_trims_then_keeps_each_quota() -> None:
    z = np.concatenate([on_circle(0, 1, 2, 90, 91, 200)] * 2)
    class_ids = np.repeat([0, 1], 6)
    scores = np.ones(12)
    scores[[1, 3]] = -1  # the first two picks of class 0, were they not trimmed
    assert herding(z, scores, class_ids, np.array([0, 3])).tolist() == [7, 9, 11]
    chosen = herding(z, scores, class_ids, np.array([2, 2]))
    assert chosen.tolist()[2:] == [7, 9]
    assert not {1, 3} & set(chosen.tolist())
    assert set(herding(z, scores, class_ids, np.array([5, 0]))) > {0, 2, 4, 5}
