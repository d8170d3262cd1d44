"""An epoch's order: every example as often as it should come, on every rank equally many."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sage_torch.sampler.epoch_order import EpochOrder, Split


def make(kept: NDArray[np.int64] | None = None, **options: Any) -> EpochOrder:
    size = options.setdefault("size", 10 if kept is None else len(kept))
    given = {"length": size, "seed": 0, "epoch": 0, "shuffle": True, "split": Split(), **options}
    return EpochOrder(kept, **given)


def whole(order: EpochOrder) -> list[int]:
    return order.take(0, len(order)).tolist() if len(order) else []


def test_values_never_change() -> None:
    assert whole(make()) == [5, 2, 6, 4, 3, 7, 8, 0, 1, 9]  # as in src/draw.rs
    assert whole(make(size=4, length=10)) == GOLDEN_REPEATED


GOLDEN_REPEATED = [2, 0, 1, 3, 3, 2, 1, 0, 1, 0]

sizes = st.integers(1, 40)


@given(size=sizes, extra=st.integers(0, 90), seed=st.integers(0, 2**62), epoch=st.integers(0, 9))
def test_repetitions_are_complete(size: int, extra: int, seed: int, epoch: int) -> None:
    kept = np.arange(size, dtype=np.int64) * 3 + 1
    yielded = whole(make(kept, length=size + extra, seed=seed, epoch=epoch))
    assert len(yielded) == size + extra
    for start in range(0, len(yielded), size):
        part = yielded[start : start + size]
        assert len(set(part)) == len(part)
        assert set(part) <= set(kept.tolist())
        assert len(part) < size or sorted(part) == kept.tolist()


def test_each_repetition_has_its_own_order() -> None:
    yielded = whole(make(size=20, length=100))
    parts = {tuple(yielded[start : start + 20]) for start in range(0, 100, 20)}
    assert len(parts) == 5
    assert yielded[:20] == whole(make(size=20))
    others = [whole(make(size=20, length=100, **name)) for name in ({"seed": 1}, {"epoch": 1})]
    assert all(other[20:] != yielded[20:] for other in others)


@given(
    size=sizes,
    extra=st.integers(0, 30),
    replicas=st.integers(1, 9),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
)
def test_ranks_share_the_order(
    size: int, extra: int, replicas: int, drop_last: bool, shuffle: bool
) -> None:
    length = size + extra

    def of(split: Split) -> list[int]:
        return whole(make(size=size, length=length, shuffle=shuffle, split=split))

    alone = of(Split())
    parts = [of(Split(replicas, rank, drop_last)) for rank in range(replicas)]
    per_rank = length // replicas if drop_last else -(-length // replicas)
    assert [len(part) for part in parts] == [per_rank] * replicas
    interleaved = [part[step] for step in range(per_rank) for part in parts]
    padded = [alone[place % length] for place in range(per_rank * replicas)]
    assert interleaved == padded
    if not drop_last:
        assert not Counter(alone) - Counter(interleaved)  # nothing is lost


@given(size=sizes, cut=st.integers(0, 60), replicas=st.integers(1, 4))
def test_parts_make_the_whole(size: int, cut: int, replicas: int) -> None:
    order = make(size=size, length=2 * size, split=Split(replicas, replicas - 1))
    cut = min(max(cut, 1), len(order) - 1)
    if cut:
        parts = order.take(0, cut).tolist() + order.take(cut, len(order) - cut).tolist()
        assert parts == whole(order)


def test_memory_does_not_grow_with_the_data_set() -> None:
    order = make(size=10**12, split=Split(3, 1))
    assert sys.getsizeof(order) + sum(map(sys.getsizeof, vars(order).values())) < 2_000
    assert len(order.take(10**11, 5)) == 5


@pytest.mark.parametrize("numbers", [(0, 0), (2, 2), (2, -1)])
def test_ranks_that_do_not_exist_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected (a )?(rank|num_replicas)"):
        Split(*numbers)
