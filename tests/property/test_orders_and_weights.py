"""Herding orders hold every untrimmed example once; weights count every one of them."""

from __future__ import annotations

import numpy as np
import reference
import reference_rules
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_cases import Case, cases, checked, choose, smallest_lead, trims

from sage_torch import _core


@checked
@given(case=cases(), trim=trims, block_size=st.sampled_from([1, 4, 16, 512]))
def test_an_order_holds_every_untrimmed_example_once(
    case: Case, trim: reference.Trim, block_size: int
) -> None:
    n, sizes = len(case.scores), np.bincount(case.class_ids, minlength=len(case.quotas))
    in_blocks = _core.herding_order(
        case.rows, case.scores, case.class_ids, case.quotas, trim=trim, block_size=block_size
    )
    stream = _core.BlockStream(
        sizes,
        case.quotas,
        width=case.rows.shape[1],
        trim=trim,
        whole_order=True,
        block_size=block_size,
    )
    stream.add(case.rows, case.scores, case.class_ids, np.arange(n))
    for order, starts, classes in (in_blocks, stream.finish_order()):
        assert order.dtype == starts.dtype == classes.dtype == np.int64
        assert len(starts) == len(classes) + 1
        assert starts[0] == 0
        assert starts[-1] == len(order)
        assert ((np.diff(starts) > 0) & (np.diff(starts) <= block_size)).all()
        assert (np.diff(classes) >= 0).all()
        assert case.class_ids[order].tolist() == np.repeat(classes, np.diff(starts)).tolist()
        per_class = np.bincount(case.class_ids[order], minlength=len(case.quotas))
        assert (per_class >= case.quotas).all()
        assert len(set(order.tolist())) == len(order)
        if order is not in_blocks[0]:
            assert stream.trimmed == n - len(order)
    left = _core.untrimmed(case.scores, case.class_ids, case.quotas, trim=trim)
    assert np.sort(in_blocks[0]).tolist() == left.tolist()


@checked
@given(case=cases(most_examples=25), trim=trims)
def test_an_order_is_the_one_in_which_the_oracle_herds(case: Case, trim: reference.Trim) -> None:
    left = _core.untrimmed(case.scores, case.class_ids, case.quotas, trim=trim)
    for class_id in range(len(case.quotas)):
        members = left[case.class_ids[left] == class_id]
        assume(smallest_lead(case.rows[members], len(members)) > 1e-6)
    of = (case.rows, case.scores, case.class_ids, case.quotas)
    order, _, _ = _core.herding_order(*of, trim=trim)
    assert order.tolist() == reference_rules.herding_order(*of, trim).tolist()


@checked
@given(case=cases(), trim=trims, block_size=st.sampled_from([1, 7, 4096]))
def test_weights_count_every_untrimmed_example(
    case: Case, trim: reference.Trim, block_size: int
) -> None:
    chosen = choose(case, trim)
    left = _core.untrimmed(case.scores, case.class_ids, case.quotas, trim=trim)
    weights = _core.weights(
        case.rows, case.class_ids, len(case.quotas), left, chosen, block_size=block_size
    )
    assert weights.dtype == np.float32
    assert weights.shape == chosen.shape
    assert (weights >= 1).all()
    for class_id, quota in enumerate(case.quotas.tolist()):
        of_class = weights[case.class_ids[chosen] == class_id]
        assert of_class.sum() == (case.class_ids[left] == class_id).sum() * (quota > 0)


@checked
@given(case=cases(), trim=trims)
def test_weights_are_those_of_the_oracle(case: Case, trim: reference.Trim) -> None:
    chosen = choose(case, trim)
    left = _core.untrimmed(case.scores, case.class_ids, case.quotas, trim=trim)
    cosines = reference.unit(case.rows) @ reference.unit(case.rows[chosen]).T
    cosines[case.class_ids[:, None] != case.class_ids[chosen]] = -9
    if len(chosen) > 1:
        first, second = -np.sort(-cosines, axis=1)[np.setdiff1d(left, chosen), :2].T
        # One right answer: no two kept ones are nearly as near, but for a zero row (all 0).
        assume(((first - second > 1e-6) | (first == second)).all())
    weights = _core.weights(case.rows, case.class_ids, len(case.quotas), left, chosen)
    expected = reference_rules.weights(case.rows, case.class_ids, left, chosen)
    assert weights.tolist() == expected.tolist()
