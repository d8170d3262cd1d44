"""Near duplicates: of one group, near their representative, whatever the order of the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rule_cases import checked

from sage_torch.selection.duplicates import _SAME, WIDEST, _whitened, near_duplicates


class Case(NamedTuple):
    rows: NDArray[np.float32]
    groups: NDArray[np.int64]
    scores: NDArray[np.float32]
    random: np.random.Generator


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random rows, a part of them copies of others, some exact and some within the noise."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, width = draw(st.integers(2, 150)), draw(st.integers(1, 10))
    rows = random.standard_normal((count, width), np.float32)
    copies = draw(st.integers(0, count // 2))
    noise = draw(st.sampled_from([0.0, 0.01, 0.3]))
    of = random.integers(0, count, copies)
    rows[random.permutation(count)[:copies]] = rows[of] + noise * rows[of[::-1]]
    groups = random.integers(-1, draw(st.integers(0, 3)), count)
    scores = random.permutation(count).astype(np.float32) / count  # no two are equal
    return Case(rows, groups, scores, random)


@checked
@given(case=cases())
def test_a_cluster_is_of_one_group_and_near_its_representative(case: Case) -> None:
    found = near_duplicates(case.rows, case.groups, case.scores)
    joined = np.flatnonzero(found >= 0)
    best = found[joined]
    assert (found[best] == -1).all()
    assert (case.groups[joined] == case.groups[best]).all()
    assert (case.scores[joined] < case.scores[best]).all()
    white = _whitened(case.rows).astype(np.float64)
    gaps = np.linalg.norm(white[joined] - white[best], axis=1)
    assert (gaps <= max(WIDEST, _SAME) + 1e-5).all()
    equal = np.flatnonzero((case.rows == case.rows[0]).all(1) & (case.groups == case.groups[0]))
    assert len({int(at if found[at] < 0 else found[at]) for at in equal}) == 1


@checked
@given(case=cases())
def test_the_order_of_rows_does_not_matter(case: Case) -> None:
    found = near_duplicates(case.rows, case.groups, case.scores)
    again = near_duplicates(case.rows, case.groups, case.scores)
    assert np.array_equal(found, again)
    order = case.random.permutation(len(found))
    moved = near_duplicates(case.rows[order], case.groups[order], case.scores[order])
    assert np.array_equal(np.where(moved >= 0, order[moved], -1), found[order])
