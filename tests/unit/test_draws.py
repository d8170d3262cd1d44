"""Seeded permutations and random subsets: complete, even, and the same in every version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_torch import _core

checked = settings(max_examples=60, derandomize=True, deadline=None, database=None)
seeds = st.integers(0, 2**64 - 1)


@checked
@given(size=st.integers(0, 3000), seed=seeds, stream=seeds)
def test_visits_every_number_once(size: int, seed: int, stream: int) -> None:
    order = _core.Permutation(size, seed, stream).take(0, size)
    assert order.dtype == np.int64
    assert np.sort(order).tolist() == list(range(size))


@checked
@given(size=st.integers(1, 2**62), seed=seeds, data=st.data())
def test_places_are_computed_one_by_one(size: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    count = min(30, size - start)
    order = _core.Permutation(size, seed)
    together = order.take(start, count)
    assert ((together >= 0) & (together < size)).all()
    assert len(set(together.tolist())) == count
    assert together.tolist() == [order.take(start + i, 1)[0] for i in range(count)]
    assert len(order) == size


def test_values_never_change() -> None:
    # The same numbers as in src/draw.rs: a saved subset must mean the same in every version.
    assert _core.Permutation(10, 0).take(0, 10).tolist() == [5, 2, 6, 4, 3, 7, 8, 0, 1, 9]
    billion = _core.Permutation(1_000_000_000, 7, 2)
    assert billion.take(0, 3).tolist() == [654817942, 423715858, 249444855]
    subset = _core.random_subset(np.array([0, 1, 0, 1, 0, 1], np.int32), [2, 1], 5)
    assert subset.tolist() == [1, 2, 4]


def test_seeds_and_streams_name_different_orders() -> None:
    orders = {
        tuple(_core.Permutation(50, seed, stream).take(0, 50))
        for seed in range(20)
        for stream in range(20)
    }
    assert len(orders) == 400


def test_leaving_the_permutation_is_refused() -> None:
    order = _core.Permutation(5, 0)
    for start, count in [(3, 3), (6, 0), (5, 1), (2**64 - 1, 2)]:
        with pytest.raises(ValueError, match=r"positions within \[0, 5\)"):
            order.take(start, count)
    assert order.take(5, 0).tolist() == []


def test_every_example_is_drawn_equally_often() -> None:
    class_ids = np.array([0] * 12 + [1] * 5, np.int32)
    quotas, seeds = np.array([3, 2]), 4000
    drawn = np.zeros(17)
    pairs = np.zeros((17, 17))
    for seed in range(seeds):
        chosen = _core.random_subset(class_ids, quotas, seed)
        drawn[chosen] += 1
        pairs[np.ix_(chosen, chosen)] += 1
    share = np.where(class_ids == 0, 3 / 12, 2 / 5)
    spread = np.sqrt(seeds * share * (1 - share))
    assert (np.abs(drawn - seeds * share) < 4.5 * spread).all()
    # Pairs within the first class come together with probability 3/12 * 2/11.
    together = pairs[:12, :12][np.triu_indices(12, 1)]
    expected = seeds * 3 / 12 * 2 / 11
    assert (np.abs(together - expected) < 4.5 * np.sqrt(expected)).all()


def test_classes_are_drawn_apart() -> None:
    # Equal classes under one seed: the same places would be a shared, hence dependent, draw.
    class_ids = np.repeat(np.arange(2, dtype=np.int32), 100)
    chosen = _core.random_subset(class_ids, [10, 10], 3)
    assert set(chosen[:10]) != set(chosen[10:] - 100)


def test_wrong_quotas_and_classes_are_refused() -> None:
    class_ids = np.array([0, 1, 1], np.int32)
    with pytest.raises(ValueError, match=r"quota of at most 1 .* for class 0, got 2"):
        _core.random_subset(class_ids, [2, 1], 0)
    with pytest.raises(ValueError, match=r"class ids in \[0, 1\), got 1"):
        _core.random_subset(class_ids, [1], 0)
    with pytest.raises(ValueError, match=r"class ids in \[0, 2\), got -1"):
        _core.random_subset(np.array([0, -1], np.int32), [1, 0], 0)
