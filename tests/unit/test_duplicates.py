"""Near duplicates: what is found, who represents it, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sage_torch.selection import duplicates, neighbours
from sage_torch.selection.duplicates import near_duplicates

Floats = NDArray[np.float32]


def random_rows(count: int, width: int = 8, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


def with_copies(count: int = 300, copies: int = 30) -> Floats:
    """Random rows of which the last are copies of the first, a little off."""
    rows = random_rows(count)
    rows[-copies:] = rows[:copies] + 0.01 * random_rows(copies, seed=1)
    return rows


def test_copies_are_found_and_nothing_else() -> None:
    found = near_duplicates(with_copies())
    assert found.dtype == np.int64
    assert found[-30:].tolist() == list(range(30))
    assert (found[:-30] == -1).all()


def test_the_most_likely_label_represents_a_cluster() -> None:
    scores = np.full(300, 0.5, np.float32)
    scores[[270, 1]] = 0.9, np.nan
    found = near_duplicates(with_copies(), label_scores=scores)
    assert (found[0], found[270]) == (270, -1)
    assert (found[1], found[271]) == (271, -1)  # NaN is lowest
    assert (found[2], found[272]) == (-1, 2)  # of equals the first


def test_groups_are_never_mixed() -> None:
    rows, groups = with_copies(), np.zeros(300, np.int64)
    groups[-30:-10] = 5
    found = near_duplicates(rows, groups)
    assert (found[-30:-10] == -1).all()
    assert found[-10:].tolist() == list(range(20, 30))


def test_several_copies_share_one_representative() -> None:
    rows = with_copies()
    for place in range(40, 48):
        rows[place] = rows[100] + 0.01 * rows[place]
    found = near_duplicates(rows)
    assert found[40] == -1
    assert (found[41:48] == 40).all()
    assert found[100] == 40


def test_many_equal_rows_are_one_cluster() -> None:
    rows = random_rows(400)
    rows[100:300] = rows[7]
    found = near_duplicates(rows)
    assert (found[100:300] == 7).all()
    assert (np.delete(found, np.arange(100, 300)) == -1).all()


@pytest.mark.parametrize("count", [2, 3, 50])
def test_equal_rows_are_near_duplicates_in_any_number(count: int) -> None:
    found = near_duplicates(np.ones((count, 3), np.float32))
    assert found.tolist() == [-1] + [0] * (count - 1)


def test_nothing_is_found_where_rows_lie_evenly() -> None:
    assert (near_duplicates(random_rows(2_000, width=4)) >= 0).sum() <= 2


def test_more_mistakes_allowed_find_more() -> None:
    rows = random_rows(1_000, width=6)
    rows[-100:] = rows[:100] + 0.1 * random_rows(100, width=6, seed=1)
    few, more = ((near_duplicates(rows, mistaken=share) >= 0).sum() for share in (0.01, 0.4))
    assert 0 < few < more


def test_a_chain_is_cut_where_its_representative_is_too_far() -> None:
    angles = np.arange(8) * 0.2
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    reach, scores = np.full(8, 0.5, np.float32), np.zeros(8)
    joined = duplicates._joined(rows, np.zeros(8, np.int64), reach, scores)
    assert joined.tolist() == [-1, 0, 0, -1, 3, 3, -1, 6]


@pytest.mark.parametrize("count", [0, 1])
def test_few_examples_have_no_duplicates(count: int) -> None:
    assert near_duplicates(random_rows(count)).tolist() == [-1] * count


def test_float16_columns_of_a_wider_array_do() -> None:
    wide = np.hstack([random_rows(300, seed=3), with_copies()]).astype(np.float16)
    before = wide.copy()
    found = near_duplicates(wide[:, 8:])
    assert np.array_equal(found, near_duplicates(with_copies()))
    assert np.array_equal(wide, before)


def test_the_index_finds_what_comparing_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, groups = with_copies(3_000, 200), np.arange(3_000) % 2  # copies are of one group
    exact = near_duplicates(rows, groups)
    assert (exact[-200:] == np.arange(200)).all()
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 1_500)
    monkeypatch.setattr(neighbours, "_BLOCK", 400)
    assert np.array_equal(near_duplicates(rows, groups), exact)


def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 1_500)
    rows, before, found = random_rows(3_000, width=3), faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            found.append(near_duplicates(rows, mistaken=0.5))
    finally:
        faiss.omp_set_num_threads(before)
    assert np.array_equal(*found)


def test_lists_with_too_few_rows_give_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 200)
    monkeypatch.setattr(neighbours, "_LIST", 4)
    monkeypatch.setattr(neighbours, "_PROBED", 1)
    rows = with_copies().astype(np.float16)
    places, distances = neighbours.nearest(rows)
    assert ((places < 0) == np.isinf(distances)).all()
    assert (places < 0).any()
    found = near_duplicates(rows)
    assert (found[:-30] == -1).all()
    assert (found[-30:] >= 0).any()


def test_faiss_is_needed_for_many_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 301)
    assert (near_duplicates(with_copies()) >= 0).sum() == 30
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 300)
    with pytest.raises(ImportError, match=r"pip install 'sage-torch\[duplicates\]'"):
        near_duplicates(with_copies())


def test_neighbours_come_in_order_without_the_row_itself() -> None:
    rows = random_rows(100)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    short = rows.astype(np.float16)
    places, distances = neighbours.nearest(short)
    exact = np.linalg.norm(short[:, None].astype(np.float64) - short[None], axis=2)
    np.fill_diagonal(exact, np.inf)
    assert np.array_equal(places, np.argsort(exact, axis=1)[:, :16])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :16], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"coordinates": np.ones((4, 2))}, TypeError, "float16 or float32, got float64"),
        ({"coordinates": np.ones(4, np.float32)}, ValueError, r"shape \(N, w\), got \(4,\)"),
        ({"coordinates": np.full((4, 2), np.nan, np.float32)}, ValueError, "finite coordinates"),
        ({"groups": np.zeros(3, np.int64)}, ValueError, r"groups of shape \(4,\).*got \(3,\)"),
        ({"groups": np.zeros(4)}, TypeError, "groups of integers, got float64"),
        ({"label_scores": np.zeros(5)}, ValueError, r"label_scores of shape \(4,\)"),
        ({"mistaken": 0.0}, ValueError, r"share in \(0, 1\), got 0.0"),
        ({"mistaken": 1.0}, ValueError, r"share in \(0, 1\), got 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        near_duplicates(**({"coordinates": random_rows(4, 2)} | changes))
