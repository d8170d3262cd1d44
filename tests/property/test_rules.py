"""What every rule keeps: exactly as many as asked for, the right ones, whatever the scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sage_torch import _core

Floats32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]

checked = settings(max_examples=60, derandomize=True, deadline=None, database=None)
modes = pytest.mark.parametrize("mode", ["proportional", "equal"])
trims = st.one_of(st.none(), st.just("negative"), st.floats(0, 0.99))
counts_of_classes = st.lists(st.integers(0, 300), min_size=1, max_size=8)


@dataclass(frozen=True)
class Case:
    """Examples of a few classes and how many of each to keep."""

    class_ids: Ids  # (N,)
    quotas: Ints  # (C,), at most the class's size
    scores: Floats32  # (N,) from few values, so that ties abound
    rows: Floats32  # (N, width), with zero rows and rows of any length

    def per_class(self, indices: Ints) -> list[int]:
        return np.bincount(self.class_ids[indices], minlength=len(self.quotas)).tolist()


@st.composite
def cases(draw: st.DrawFn, most_examples: int = 60) -> Case:
    classes = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, most_examples))
    class_ids = rng.integers(0, classes, size=n).astype(np.int32)
    sizes = np.bincount(class_ids, minlength=classes)
    share = draw(st.sampled_from([0.1, 0.5, 1.0]))
    quotas = rng.integers(0, np.floor(share * sizes).astype(np.int64) + 1)
    values = np.array([-1.0, -0.5, -1e-3, 0.0, 0.25, 0.25, 0.5, 1.0], np.float32)
    rows = (
        rng.normal(size=(n, draw(st.integers(2, 6)))) + 3 * rng.normal(size=(classes, 1))[class_ids]
    )
    rows *= 10.0 ** rng.uniform(-15, 15, size=(n, 1))
    rows[rng.random(n) < 0.05] = 0
    return Case(class_ids, quotas, rng.choice(values, size=n), rows.astype(np.float32))


def assert_is_a_subset(indices: Ints, total: int) -> None:
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()
    assert len(indices) == 0 or (indices[0] >= 0 and indices[-1] < total)


def smallest_lead(rows: Floats32, k: int) -> float:
    """By how much the oracle's herding prefers its pick to the next best, at its closest call."""
    units = reference.unit(rows)
    distances = np.linalg.norm(units[:, None] - units[None], axis=2)
    kernel = np.exp(-(distances**2) / (2 * reference.bandwidth(rows) ** 2))
    leads = [np.inf]
    covered, left = np.zeros(len(rows)), np.ones(len(rows), bool)
    for step, pick in enumerate(reference.herd(rows, k)):
        gain = kernel.mean(axis=1) - covered / (step + 1)
        left[pick] = False
        leads.append(float((gain[pick] - gain[left]).min(initial=np.inf)))
        covered += kernel[:, pick]
    return min(leads)


@modes
@checked
@given(counts=counts_of_classes, data=st.data())
def test_class_quotas_sum_to_k(mode: str, counts: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(counts)))
    quotas = _core.class_quotas(counts, budget, mode)
    assert quotas.sum() == budget
    assert ((quotas >= 0) & (quotas <= counts)).all()
    assert quotas.tolist() == reference.class_quotas(np.array(counts), budget, mode).tolist()
    if mode == "proportional":
        share = np.array(counts) * budget / max(1, sum(counts))
        assert (np.abs(quotas - share) < 1).all()
    else:  # only a class that has nothing left to give gives less than the others
        open_classes = quotas[quotas < counts]
        assert len(open_classes) == 0 or quotas.max() <= open_classes.min() + 1


def test_quotas_stay_exact_for_huge_classes() -> None:
    counts = [2**40 + 1, 2**40, 3]  # budget * count does not fit 64 bits
    quotas = _core.class_quotas(counts, 2**40)
    assert quotas.tolist() == [2**39, 2**39 - 1, 1]


@checked
@given(case=cases())
def test_top_k_keeps_exactly_the_best(case: Case) -> None:
    chosen = _core.top_k(case.scores, case.class_ids, case.quotas)
    assert_is_a_subset(chosen, len(case.scores))
    assert case.per_class(chosen) == case.quotas.tolist()
    assert chosen.tolist() == reference.top_k(case.scores, case.class_ids, case.quotas).tolist()
    kept = np.isin(np.arange(len(case.scores)), chosen)
    for class_id in range(len(case.quotas)):
        members = case.class_ids == class_id
        if (members & kept).any() and (members & ~kept).any():
            worst_kept = case.scores[members & kept].min()
            assert worst_kept >= case.scores[members & ~kept].max()
            ties = np.flatnonzero(members & (case.scores == worst_kept))
            assert (np.diff(kept[ties].astype(int)) <= 0).all()  # the lower indices of equals


def test_both_zeros_are_equal_scores() -> None:
    class_ids = np.zeros(3, np.int32)
    assert _core.top_k(np.array([-0.0, 0.0, -0.0], np.float32), class_ids, [1]).tolist() == [0]
    rows, ids = np.eye(3, dtype=np.float32), class_ids
    zeros = np.array([-0.0, 0.0, 0.0], np.float32)
    kept = _core.herding(rows, zeros, ids, [2], trim=0.4)  # one leaves: of equals the last
    assert kept.tolist() == [0, 1]


@checked
@given(case=cases(), trim=trims, block_size=st.sampled_from([1, 3, 16, 4096]))
def test_herding_keeps_exactly_k(case: Case, trim: reference.Trim, block_size: int) -> None:
    chosen = _core.herding(
        case.rows, case.scores, case.class_ids, case.quotas, trim=trim, block_size=block_size
    )
    assert_is_a_subset(chosen, len(case.scores))
    assert case.per_class(chosen) == case.quotas.tolist()


@checked
@given(case=cases(), trim=trims)
def test_trimmed_examples_come_back_only_when_the_quota_needs_them(
    case: Case, trim: reference.Trim
) -> None:
    chosen = _core.herding(case.rows, case.scores, case.class_ids, case.quotas, trim=trim)
    for class_id, quota in enumerate(case.quotas.tolist()):
        members = np.flatnonzero(case.class_ids == class_id)
        left = members[reference.trimmed(case.scores[members], quota, trim)]
        kept = chosen[case.class_ids[chosen] == class_id]
        assert np.isin(kept, left).all()
        if len(left) == quota:
            assert kept.tolist() == left.tolist()


@checked
@given(case=cases(most_examples=40), trim=trims)
def test_herding_picks_what_the_oracle_picks(case: Case, trim: reference.Trim) -> None:
    for class_id, quota in enumerate(case.quotas.tolist()):
        members = np.flatnonzero(case.class_ids == class_id)
        left = members[reference.trimmed(case.scores[members], quota, trim)]
        assume(quota == 0 or smallest_lead(case.rows[left], quota) > 1e-5)  # float32 kernel
    expected = reference.herding(case.rows, case.scores, case.class_ids, case.quotas, trim)
    chosen = _core.herding(case.rows, case.scores, case.class_ids, case.quotas, trim=trim)
    assert chosen.tolist() == expected.tolist()
    stream = _core.BlockStream(
        np.bincount(case.class_ids, minlength=len(case.quotas)),
        case.quotas,
        width=case.rows.shape[1],
        trim=trim,
    )
    backwards = np.arange(len(case.scores))[::-1].copy()
    for part in np.array_split(backwards, 3):
        stream.add(case.rows[part], case.scores[part], case.class_ids[part], part)
    assert stream.finish()[0].tolist() == expected.tolist()  # one block a class: the same subset


@checked
@given(case=cases(), trim=trims, block_size=st.sampled_from([1, 4, 1024]), data=st.data())
def test_herding_stream_keeps_exactly_the_quotas(
    case: Case, trim: reference.Trim, block_size: int, data: st.DataObject
) -> None:
    n, sizes = len(case.scores), np.bincount(case.class_ids, minlength=len(case.quotas))
    order = np.random.default_rng(n).permutation(n)
    chosen = []
    for batches in (1, data.draw(st.integers(1, n))):
        stream = _core.BlockStream(
            sizes, case.quotas, width=case.rows.shape[1], trim=trim, block_size=block_size
        )
        for part in np.array_split(order, batches):
            stream.add(case.rows[part], case.scores[part], case.class_ids[part], part)
        chosen.append(stream.finish()[0])
    assert_is_a_subset(chosen[0], n)
    assert case.per_class(chosen[0]) == case.quotas.tolist()
    assert chosen[0].tolist() == chosen[1].tolist()  # batch boundaries do not matter


@checked
@given(case=cases(), seed=st.integers(0, 2**64 - 1))
def test_random_subset_keeps_exactly_the_quotas(case: Case, seed: int) -> None:
    chosen = _core.random_subset(case.class_ids, case.quotas, seed)
    assert_is_a_subset(chosen, len(case.scores))
    assert case.per_class(chosen) == case.quotas.tolist()
    assert chosen.tolist() == _core.random_subset(case.class_ids, case.quotas, seed).tolist()


@checked
@given(case=cases())
def test_consensus_and_agreement_are_finite_and_equal_the_oracle(case: Case) -> None:
    classes = len(case.quotas) + 1  # the last class is empty
    consensus = _core.Consensus(classes, case.rows.shape[1])
    for part in np.array_split(np.arange(len(case.rows)), 3):
        consensus.add(case.rows[part], case.class_ids[part])
    directions = consensus.directions()
    assert np.isfinite(directions).all()
    expected = reference.consensus(case.rows, case.class_ids, classes)
    assert np.abs(directions - expected).max() < 1e-9
    scores = _core.agreement(case.rows, case.class_ids, directions)
    assert scores.dtype == np.float32
    assert (np.abs(scores) <= 1).all()  # no NaN passes this
    oracle = reference.agreement(case.rows, case.class_ids, expected)
    assert np.abs(scores - oracle).max() < 1e-6


@pytest.mark.parametrize("trim", [None, "negative", 0.5])
def test_everything_is_kept_when_everything_is_asked_for(trim: reference.Trim) -> None:
    class_ids = np.arange(50, dtype=np.int32) % 3
    sizes, rng = np.bincount(class_ids), np.random.default_rng(0)
    rows = rng.normal(size=(50, 4)).astype(np.float32)
    scores = rng.uniform(-1, 1, size=50).astype(np.float32)
    chosen = _core.herding(rows, scores, class_ids, sizes, trim=trim)
    assert chosen.tolist() == list(range(50))


def test_equal_rows_are_kept_by_index() -> None:
    rows, ids = np.ones((9, 3), np.float32), np.zeros(9, np.int32)
    assert _core.herding(rows, np.ones(9, np.float32), ids, [4], trim=None).tolist() == [0, 1, 2, 3]
