"""What the rules keep: exactly as many as asked for, the right ones, whatever the scores."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import reference_rules
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_cases import Case, Ints, cases, checked, choose, scored, smallest_lead, trims

from sage_torch import _core

modes = pytest.mark.parametrize("mode", ["proportional", "equal"])
counts_of_classes = st.lists(st.integers(0, 300), min_size=1, max_size=8)


def assert_is_a_subset(indices: Ints, total: int) -> None:
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()
    assert len(indices) == 0 or (indices[0] >= 0 and indices[-1] < total)


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
@given(case=cases(), trim=trims, seed=st.integers(0, 2**64 - 1))
def test_herding_keeps_exactly_k(case: Case, trim: reference.Trim, seed: int) -> None:
    for block_size in (1, 3, 16, 4096):
        chosen = choose(case, trim, seed=seed, block_size=block_size)
        assert_is_a_subset(chosen, len(case.scores))
        assert case.per_class(chosen) == case.quotas.tolist()


@checked
@given(case=cases(), trim=trims)
def test_trimmed_examples_come_back_only_when_the_quota_needs_them(
    case: Case, trim: reference.Trim
) -> None:
    chosen = choose(case, trim)
    untrimmed = _core.untrimmed(case.scores, case.class_ids, case.quotas, trim=trim)
    assert_is_a_subset(untrimmed, len(case.scores))
    for class_id, quota in enumerate(case.quotas.tolist()):
        members = np.flatnonzero(case.class_ids == class_id)
        left = members[reference.trimmed(case.scores[members], quota, trim)]
        assert untrimmed[case.class_ids[untrimmed] == class_id].tolist() == left.tolist()
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
    expected = reference_rules.by_class(
        reference.herd, case.rows, case.scores, case.class_ids, case.quotas, trim
    )
    assert choose(case, trim).tolist() == expected.tolist()
    stream = _core.BlockStream(
        np.bincount(case.class_ids, minlength=len(case.quotas)),
        case.quotas,
        width=case.rows.shape[1],
        trim=trim,
    )
    backwards = np.arange(len(case.scores))[::-1].copy()
    for part in np.array_split(backwards, 3):
        stream.add(case.rows[part], case.scores[part], case.class_ids[part], part)
    streamed = stream.finish()  # one block a class: the same subset, in the same order
    order = _core.herding(case.rows, case.scores, case.class_ids, case.quotas, trim=trim)
    assert streamed.tolist() == order.tolist()
    left = _core.untrimmed(case.scores, case.class_ids, case.quotas, trim=trim)
    assert stream.trimmed == len(case.scores) - len(left)


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
        chosen.append(stream.finish())
    assert_is_a_subset(np.sort(chosen[0]), n)
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
    scores, _ = scored(case.rows, case.class_ids, directions)
    assert (np.abs(scores) <= 1).all()  # no NaN passes this
    oracle = reference.agreement(case.rows, case.class_ids, expected)
    assert np.abs(scores - oracle).max() < 1e-6


@checked
@given(case=cases())
def test_margins_are_finite_and_equal_the_oracle(case: Case) -> None:
    classes = len(case.quotas) + 1  # the last class is empty: nobody opposes it
    directions = reference.consensus(case.rows, case.class_ids, classes)
    scores, margins = scored(case.rows, case.class_ids, directions)
    assert ((margins >= -1.5) & (margins <= 1)).all()  # no NaN passes this
    oracle = reference.margin(case.rows, case.class_ids, directions)
    assert np.abs(margins - oracle).max() < 1e-6
    assert (margins <= scores).all()
    assert (margins >= scores - 0.5 - 1e-6).all()
    assert not margins[~case.rows.any(axis=1)].any()  # a zero row takes no side


@checked
@given(case=cases(), power=st.integers(-20, 20))
def test_margins_do_not_depend_on_the_length_of_rows(case: Case, power: int) -> None:
    directions = reference.consensus(case.rows, case.class_ids, len(case.quotas))
    _, margins = scored(case.rows, case.class_ids, directions)
    scaled = np.ldexp(case.rows, power)  # by powers of two: nothing is rounded
    assert margins.tolist() == scored(scaled, case.class_ids, directions)[1].tolist()


@checked
@given(case=cases())
def test_with_one_class_the_margin_is_the_agreement(case: Case) -> None:
    ids = np.zeros_like(case.class_ids)
    directions = reference.consensus(case.rows, ids, 1)
    scores, margins = scored(case.rows, ids, directions)
    assert margins.tolist() == scores.tolist()


@pytest.mark.parametrize("trim", [None, "negative", 0.5])
def test_everything_is_kept_when_everything_is_asked_for(trim: reference.Trim) -> None:
    class_ids = np.arange(50, dtype=np.int32) % 3
    sizes, rng = np.bincount(class_ids), np.random.default_rng(0)
    rows = rng.normal(size=(50, 4)).astype(np.float32)
    scores = rng.uniform(-1, 1, size=50).astype(np.float32)
    chosen = choose(Case(class_ids, sizes, scores, rows), trim)
    assert chosen.tolist() == list(range(50))


def test_equal_rows_are_kept_by_index() -> None:
    rows, ids = np.ones((9, 3), np.float32), np.zeros(9, np.int32)
    case = Case(ids, np.array([4]), np.ones(9, np.float32), rows)
    assert choose(case, None).tolist() == [0, 1, 2, 3]


@checked
@given(seed=st.integers(0, 2**32))
def test_the_order_of_the_data_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids, rows = rng.integers(0, 2, size=24).astype(np.int32), rng.normal(size=(24, 5))
    quotas = np.bincount(ids, minlength=2) // 3
    case = Case(ids, quotas, rng.permutation(24).astype(np.float32), rows.astype(np.float32))
    leads = [smallest_lead(case.rows[ids == c], int(quotas[c])) for c in (0, 1)]
    assume(min(leads) > 1e-5)
    order = rng.permutation(24)
    moved = Case(ids[order], quotas, case.scores[order], case.rows[order])
    chosen = np.sort(order[choose(moved, None)])
    assert chosen.tolist() == choose(case, None).tolist()
