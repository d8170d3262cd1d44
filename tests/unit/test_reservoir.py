"""Weighted draws from a stream: sequential draws without replacement, however it is cut."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sage_torch import _core

checked = settings(max_examples=80, derandomize=True, deadline=None, database=None)
weight = st.sampled_from([0.0, 1e-30, 0.25, 0.5, 1.0, 3.0, 1e30]) | st.floats(0, 1, width=32)
BLOCK = 2**20


def drawn(size: int, seed: int, weights: NDArray[np.float32]) -> list[int]:
    reservoir = _core.WeightedReservoir(size, seed)
    reservoir.add(weights, 0)
    return reservoir.finish().tolist()


@checked
@given(
    weights=st.lists(weight, min_size=1, max_size=60),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_cuts_and_order_of_the_stream_change_nothing(
    weights: list[float], seed: int, data: st.DataObject
) -> None:
    whole = np.array(weights, np.float32)
    size = data.draw(st.integers(0, len(whole)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    starts = [0, *cuts]
    reservoir = _core.WeightedReservoir(size, seed)
    for place in data.draw(st.permutations(range(len(starts)))):
        stop = [*cuts, len(whole)][place]
        reservoir.add(whole[starts[place] : stop], starts[place])
    found = reservoir.finish()
    assert found.dtype == np.int64
    assert found.tolist() == drawn(size, seed, whole)
    assert len(np.unique(found)) == size
    # Fewer draws are the first of more, and weight 0 comes where nothing else is left.
    assert set(drawn(max(0, size - 1), seed, whole)) <= set(found.tolist())
    assert np.count_nonzero(whole[found]) == min(size, np.count_nonzero(whole))


@checked
@given(seed=st.integers(0, 2**63 - 1), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_the_rule_draws_the_same_way(seed: int, sizes: list[int]) -> None:
    class_ids = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    rng = np.random.default_rng(seed)
    agreement = (rng.integers(-64, 65, len(class_ids)) / 64).astype(np.float32)  # exact in (1+a)/2
    quotas = np.array([rng.integers(0, n + 1) for n in sizes])
    chosen = _core.weighted_subset(agreement, class_ids, quotas, trim=None, seed=seed)
    wanted = []
    for class_id, quota in enumerate(quotas):
        reservoir = _core.WeightedReservoir(int(quota), seed)
        for index in np.flatnonzero(class_ids == class_id):
            reservoir.add((1 + agreement[index : index + 1]) / 2, int(index))
        wanted += reservoir.finish().tolist()
    assert chosen.tolist() == sorted(wanted)


def test_examples_are_drawn_one_after_another() -> None:
    weights, seeds = np.array([0.1, 0.4, 0.2, 0.9, 0.6, 0.3], np.float32), 20_000
    found: dict[tuple[int, ...], int] = dict.fromkeys(combinations(range(6), 3), 0)
    for seed in range(seeds):
        found[tuple(drawn(3, seed, weights))] += 1
    chi = 0.0
    for subset, count in found.items():
        expected = seeds * probability(subset, weights.astype(np.float64))
        chi += (count - expected) ** 2 / expected
    assert chi < 50.8  # 19 degrees of freedom: 1 in 10,000


def probability(subset: tuple[int, ...], weights: NDArray[np.float64]) -> float:
    """Of drawing these first, in any order."""
    total = weights.sum()
    shares = {frozenset[int](): 1.0}
    for size in range(1, len(subset) + 1):
        shares = {
            frozenset(part): sum(
                shares[frozenset(part) - {last}]
                * weights[last]
                / (total - sum(weights[one] for one in part if one != last))
                for last in part
            )
            for part in combinations(subset, size)
        }
    return float(shares[frozenset(subset)])


def test_values_never_change() -> None:
    # The same numbers as in src/reservoir.rs: a saved subset must mean the same in every version.
    reservoir = _core.WeightedReservoir(4, 7)
    for start in (0, 2**32 - 51, 10**12):
        reservoir.add(np.ones(100, np.float32), start)
    golden = [4294967306, 4294967319, 1000000000053, 1000000000097]
    assert reservoir.finish().tolist() == golden


def test_reading_it_changes_nothing() -> None:
    reservoir = _core.WeightedReservoir(2, 1)
    reservoir.add(np.ones(50, np.float32), 0)
    assert reservoir.finish().tolist() == reservoir.finish().tolist()
    reservoir.add(np.ones(50, np.float32), 50)
    assert reservoir.finish().tolist() == drawn(2, 1, np.ones(100, np.float32))


@pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf])
def test_wrong_weights_are_refused_and_nothing_is_added(wrong: float) -> None:
    reservoir = _core.WeightedReservoir(1, 0)
    with pytest.raises(ValueError, match=r"finite weights of at least 0, got .* at 1"):
        reservoir.add(np.array([1.0, wrong], np.float32), 0)
    with pytest.raises(ValueError, match=r"below 2\^63"):
        reservoir.add(np.ones(2, np.float32), 2**63 - 1)
    with pytest.raises(ValueError, match="at least 1 examples to draw from, got 0"):
        reservoir.finish()


@pytest.mark.slow
def test_a_billion_examples() -> None:
    """What it holds is the 1,000 drawn and one block of weights."""
    reservoir, total = _core.WeightedReservoir(1_000, 3), 10**9
    weights = np.ones(BLOCK, np.float32)
    weights[: BLOCK // 2] = 3.0
    for start in range(0, total, BLOCK):
        reservoir.add(weights[: min(BLOCK, total - start)], start)
    found = reservoir.finish()
    assert len(np.unique(found)) == 1_000
    assert found.min() >= 0
    assert found.max() < total
    # Three quarters of the weight; five standard deviations of 1,000 draws.
    assert abs(np.count_nonzero(found % BLOCK < BLOCK // 2) - 750) < 5 * 13.7
