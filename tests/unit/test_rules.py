"""The rules on cases worked by hand, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from rule_cases import scored

from sage_torch import _core


def ids(count: int) -> npt.NDArray[np.int32]:
    return np.zeros(count, np.int32)


def ones(count: int) -> npt.NDArray[np.float32]:
    return np.ones(count, np.float32)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_weights_worked_by_hand() -> None:
    degrees = np.deg2rad([0, 90, 10, 80, 44, 46, 180, 0])
    rows = np.stack([np.cos(degrees), np.sin(degrees)], 1).astype(np.float32)
    rows[6:] *= 100  # only directions count
    rows[7] = 0  # nearest to none: the lower index
    weights = _core.weights(rows, ids(8), 1, np.arange(8), np.array([0, 1]))
    # 2, 4 and the zero row with 0; 3, 5 and 180 degrees (90 off, not 180) with 1
    assert weights.tolist() == [4, 4]
    weights = _core.weights(rows, ids(8), 1, np.array([0, 1, 2, 5]), np.array([0, 1]))
    assert weights.tolist() == [2, 2]  # the trimmed count for nobody


def test_margins_worked_by_hand() -> None:
    directions = np.array([[1, 0], [0, 1], [-0.6, -0.8]])
    rows = np.array([[1, 0], [0, -5], [3, 4], [-3, -4], [0, 2], [0, 0]], np.float32)
    class_ids = np.array([0, 0, 2, 2, 1, 2], np.int32)
    # Against the class opposed most: 2 (-0.6), 1 (-1, and 2 agrees), none for the third (its own
    # is not another), 1 (-0.8 rather than -0.6), 2 (-0.8), none.
    expected = [1 - 0.3, 0 - 0.5, -1 - 0.0, 1 - 0.4, 1 - 0.4, 0]
    _, margins = scored(rows, class_ids, directions)
    np.testing.assert_allclose(margins, expected, atol=1e-6)
    assert not np.signbit(margins[5])  # no negative zero
    assert scored(rows[:0], class_ids[:0], directions)[1].shape == (0,)


def test_threads_do_not_change_margins() -> None:
    rng = np.random.default_rng(0)
    rows, class_ids = rng.normal(size=(3001, 24)).astype(np.float32), rng.integers(0, 7, size=3001)
    directions = reference.consensus(rows, class_ids, 7)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(scored(rows, class_ids.astype(np.int32), directions)[1].tolist())
    assert results[0] == results[1] == results[2]


def test_threads_do_not_change_what_is_chosen() -> None:
    rng = np.random.default_rng(0)
    rows, scores = rng.normal(size=(3000, 12)), rng.uniform(-0.2, 1, size=3000)
    args = rows.astype(np.float32), scores.astype(np.float32), ids(3000)
    results = []
    for count in (1, 2):
        with threads(count):
            chosen = _core.herding(*args, [300], trim="negative", block_size=400)
            order = _core.herding_order(*args, [300], trim="negative")
            left = _core.untrimmed(args[1], args[2], [300], trim="negative")
            weights = _core.weights(args[0], args[2], 1, left, np.sort(chosen), block_size=400)
            results.append([part.tolist() for part in (chosen, *order, weights)])
    assert results[0] == results[1]


def test_the_head_of_an_order_is_what_herding_keeps() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    order, starts, _ = _core.herding_order(rows, ones(200), ids(200), [50], trim=None)
    assert starts.tolist() == [0, 200]
    kept = _core.herding(rows, ones(200), ids(200), [50], trim=None)
    assert order[:50].tolist() == kept.tolist()


@pytest.mark.parametrize("size", [1, 2])
def test_classes_that_are_empty_or_trimmed_away_have_no_block(size: int) -> None:
    rows = np.eye(4, dtype=np.float32)
    scores = np.array([1, 1, -1, -1], np.float32)
    class_ids = np.array([0, 0, 2, 2], np.int32)
    for quotas, classes in (([1, 0, 0], [0]), ([1, 0, 1], [0, 2])):
        _, _, of_blocks = _core.herding_order(
            rows, scores, class_ids, quotas, trim="negative", block_size=4 // size
        )
        assert sorted(set(of_blocks.tolist())) == classes


rows_of_three, axes = np.eye(3, dtype=np.float32), np.eye(3)
WRONG: list[tuple[Any, str]] = [
    (lambda: _core.untrimmed(ones(3), ids(2), [1], trim=None), "2.*got 3"),
    (lambda: _core.untrimmed(ones(3), ids(3), [4], trim=None), "at most 3.*got 4"),
    (lambda: _core.untrimmed(ones(3), ids(3) + 1, [1], trim=None), r"\[0, 1\), got 1"),
    (lambda: _core.untrimmed(ones(3), ids(3), [1], trim=1.0), "trim"),
    (lambda: _core.herding(rows_of_three, ones(2), ids(2), [1], trim=None), "rows"),
    (lambda: _core.herding_order(rows_of_three, ones(3), ids(3), [4], trim=None), "at most 3"),
    (
        lambda: _core.weights(rows_of_three, ids(3), 1, np.arange(2), np.array([2])),
        "among the untrimmed ones, got 2",
    ),
    (
        lambda: _core.weights(rows_of_three, ids(3), 1, np.arange(3), np.array([1, 1])),
        "ascending.*got 1 after 1",
    ),
    (
        lambda: _core.weights(rows_of_three, ids(3), 1, np.arange(4), np.array([1])),
        r"within \[0, 3\), got 3",
    ),
    (lambda: scored(rows_of_three, ids(3), axes[:, :2]), r"shape \(n, 2\), got \[3, 3\]"),
    (lambda: scored(rows_of_three, ids(2), axes), "one index per example, got 3 of 2"),
    (lambda: scored(rows_of_three, ids(3) + 3, axes), r"\[0, 3\), got 3"),
    (lambda: scored(rows_of_three, ids(3) - 1, axes), r"\[0, 3\), got -1"),
    (lambda: scored(rows_of_three[:, :0], ids(3), axes[:, :0]), "one class and one coordinate"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_stream_is_finished_the_way_it_was_made() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], np.float32)
    for whole_order in (False, True):
        stream = _core.BlockStream([3], [1], width=3, trim=None, whole_order=whole_order)
        stream.add(rows, ones(3), ids(3), np.arange(3))
        with pytest.raises(ValueError, match="whole_order=True"):
            (stream.finish if whole_order else stream.finish_order)()
    assert reference.herd(rows, 3).tolist() == stream.finish_order()[0].tolist()
