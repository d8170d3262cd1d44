"""Draws over epochs: exact, even, representative, and the same whenever one asks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_torch.selection.draws import Draws, whole_number

Ints = npt.NDArray[np.int64]

checked = settings(max_examples=80, derandomize=True, deadline=None, database=None)
both_draws = pytest.mark.parametrize("draw", ["rotate", "random"])


def draws_of(
    blocks: list[list[int]],
    quotas: list[int],
    *,
    draw: Literal["rotate", "random"] = "rotate",
    seed: int = 0,
    is_herded: bool = True,
    spread: int = 1,
) -> Draws:
    """Make the draws of classes with blocks of these sizes; indices are shuffled by the seed."""
    sizes = [size for of_class in blocks for size in of_class]
    order = np.random.default_rng(seed).permutation(spread * sum(sizes))[: sum(sizes)]
    return Draws(
        draw=draw,
        order=order,
        starts=np.cumsum([0, *sizes]),
        classes=np.repeat(np.arange(len(blocks)), [len(of_class) for of_class in blocks]),
        quotas=np.array(quotas),
        seed=seed,
        is_herded=is_herded,
    )


def members_of(draws: Draws) -> list[Ints]:
    """Return the examples of each class, in the order of `draws.order`."""
    blocks = np.split(draws.order, draws.starts[1:-1]) if len(draws.classes) else []
    empty = [np.zeros(0, np.int64)]
    return [
        np.concatenate(
            empty + [b for b, c in zip(blocks, draws.classes, strict=True) if c == class_id]
        )
        for class_id in range(len(draws.quotas))
    ]


@st.composite
def all_draws(draw: st.DrawFn, kind: Literal["rotate", "random"] = "rotate") -> Draws:
    sizes = st.lists(st.integers(0, 9), min_size=0, max_size=3)
    blocks = draw(st.lists(sizes, min_size=1, max_size=4).filter(lambda b: sum(map(sum, b)) > 0))
    quotas = [draw(st.integers(0, sum(of_class))) for of_class in blocks]
    if not any(quotas):
        quotas = [int(sum(of_class) > 0) for of_class in blocks]
    seed = draw(st.integers(0, 2**63 - 1))
    is_herded = draw(st.booleans())
    return draws_of(blocks, quotas, draw=kind, seed=seed, is_herded=is_herded, spread=2)


@checked
@given(draws=st.one_of(all_draws("rotate"), all_draws("random")), data=st.data())
def test_every_epoch_yields_exactly_its_quotas(draws: Draws, data: st.DataObject) -> None:
    for epoch in [0, 1, 2, data.draw(st.integers(0, 2**63 - 1))]:
        drawn = draws.epoch(epoch)
        assert drawn.dtype == np.int64
        assert len(drawn) == draws.quotas.sum()
        assert (np.diff(drawn) > 0).all()
        of_class = [np.isin(members, drawn).sum() for members in members_of(draws)]
        assert of_class == draws.quotas.tolist()


@checked
@given(draws=all_draws())
def test_a_rotation_shows_all_examples_equally_often(draws: Draws) -> None:
    seen = np.zeros(draws.order.max() + 1, np.int64)
    for epoch in range(1, 41):
        seen[draws.epoch(epoch - 1)] += 1
        for members, quota in zip(members_of(draws), draws.quotas, strict=True):
            # Within one of each other whenever one looks: each turn shows each example once.
            least = epoch * quota // max(len(members), 1)
            assert set(seen[members]) <= {least, least + 1}


@checked
@given(draws=all_draws())
def test_every_example_is_seen_within_a_turn(draws: Draws) -> None:
    # From epoch 0 on that is within ceil(n / q) epochs.
    for members, quota in zip(members_of(draws), draws.quotas.tolist(), strict=True):
        for turn in range(4 if quota else 0):
            first, last = turn * len(members) // quota, -(-(turn + 1) * len(members) // quota)
            seen = np.concatenate([draws.epoch(epoch) for epoch in range(first, last)])
            assert np.isin(members, seen).all()


@pytest.mark.parametrize("quota", [1, 7, 25, 33, 50, 51, 60, 99, 100])
@pytest.mark.parametrize("is_herded", [True, False])
def test_one_hundred_examples(quota: int, is_herded: bool) -> None:
    draws = draws_of([[40, 60]], [quota], is_herded=is_herded)
    epochs = [draws.epoch(epoch) for epoch in range(100)]  # quota turns, and no rest
    assert (np.bincount(np.concatenate(epochs)) == quota).all()
    if quota < 100:
        assert len(set(map(tuple, epochs))) > 60


@both_draws
def test_any_epoch_at_any_time(draw: Literal["rotate", "random"]) -> None:
    draws = draws_of([[20, 13], [9], [17]], [12, 7, 4], draw=draw, seed=5)
    in_order = [draws.epoch(epoch) for epoch in range(12)]
    for epoch in (11, 3, 7, 3, 0, 10):
        again = draws_of([[20, 13], [9], [17]], [12, 7, 4], draw=draw, seed=5)
        assert np.array_equal(again.epoch(epoch), in_order[epoch])
        assert np.array_equal(draws.epoch(np.int64(epoch)), in_order[epoch])  # type: ignore[arg-type]
    other = replace(draws, seed=6)
    assert not np.array_equal(other.epoch(5), in_order[5])


def test_values_never_change() -> None:
    # A saved selection must mean the same in every version.
    rotated = draws_of([[6, 5], [4]], [4, 3])
    rotated = replace(rotated, order=np.arange(15))
    shuffled, random = replace(rotated, is_herded=False), replace(rotated, draw="random")
    golden = {
        rotated: [[0, 1, 2, 6, 11, 12, 13], [1, 5, 9, 10, 11, 13, 14], [2, 6, 9, 10, 12, 13, 14]],
        shuffled: [[0, 1, 5, 10, 11, 13, 14], [1, 2, 3, 7, 12, 13, 14], [3, 4, 5, 7, 11, 12, 14]],
        random: [[0, 1, 5, 10, 11, 13, 14], [3, 6, 7, 8, 11, 12, 13], [0, 4, 5, 6, 11, 13, 14]],
    }
    for draws, expected in golden.items():
        assert [draws.epoch(epoch).tolist() for epoch in (0, 2, 3)] == expected


def test_a_rotation_begins_with_the_head_of_the_herding_order() -> None:
    for quota in (1, 5, 10, 15, 19, 20):
        draws = draws_of([[20]], [quota])
        assert set(draws.epoch(0)) == set(draws.order[:quota])
    # While a turn lasts, the next ones follow.
    draws = draws_of([[20]], [6])
    assert set(draws.epoch(1)) == set(draws.order[6:12])
    assert set(draws.epoch(2)) == set(draws.order[12:18])


def test_every_turn_has_an_order_of_its_own() -> None:
    draws = draws_of([[64, 64]], [16])
    turns = [{tuple(draws.epoch(8 * turn + e)) for e in range(8)} for turn in range(10)]
    assert all(len(turn) == 8 for turn in turns)
    assert len(set.union(*turns)) == 80


@pytest.mark.parametrize("quota", [20, 50, 100, 150])
def test_every_window_takes_from_each_block_in_proportion(quota: int) -> None:
    sizes = [80, 60, 40, 20]
    draws = draws_of([sizes], [quota])
    blocks = np.split(draws.order, draws.starts[1:-1])
    for epoch in range(40):
        drawn = draws.epoch(epoch)
        for block, size in zip(blocks, sizes, strict=True):
            # Each end of a window is off by less than one, and a window over two turns has four.
            assert abs(np.isin(block, drawn).sum() - quota * size / 200) <= 4


@pytest.mark.parametrize("quota", [20, 50, 110, 150])
def test_the_worst_window_represents_its_class_better_than_the_best_random_draw(
    quota: int,
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 8)) * np.linspace(1, 0.1, 8) + np.linspace(1, 0, 8)
    distances = np.linalg.norm(reference.unit(rows)[:, None] - reference.unit(rows), axis=2)
    kernel = np.exp(-(distances**2) / (2 * reference.bandwidth(rows) ** 2))

    def discrepancy(drawn: Ints) -> float:
        """Distance of the drawn examples' mean from the mean of all, where the kernel measures."""
        squared = kernel[np.ix_(drawn, drawn)].mean() - 2 * kernel[drawn].mean() + kernel.mean()
        return float(np.sqrt(squared))

    whole = np.array([0, 200]), np.array([0]), np.array([quota])
    rotated = Draws("rotate", reference.herd(rows, 200), *whole, seed=0, is_herded=True)
    windows = [discrepancy(rotated.epoch(epoch)) for epoch in range(50)]
    randoms = [discrepancy(replace(rotated, draw="random").epoch(epoch)) for epoch in range(50)]
    assert max(windows) < min(randoms)


@pytest.mark.parametrize(("draw", "is_herded"), [("random", True), ("rotate", False)])
def test_random_draws_take_all_equally_often(draw: Any, is_herded: bool) -> None:
    seeds = 3000
    drawn, pairs = np.zeros(17), np.zeros((17, 17))
    for seed in range(seeds):
        draws = replace(
            draws_of([[12], [5]], [3, 2], draw=draw, is_herded=is_herded),
            order=np.arange(17),
            seed=seed,
        )
        chosen = draws.epoch(7)  # a rotation is in the midst of its second and third turn then
        drawn[chosen] += 1
        pairs[np.ix_(chosen, chosen)] += 1
    share = np.repeat([3 / 12, 2 / 5], [12, 5])
    assert (np.abs(drawn - seeds * share) < 4.5 * np.sqrt(seeds * share * (1 - share))).all()
    together = pairs[:12, :12][np.triu_indices(12, 1)]
    expected = seeds * 3 / 12 * 2 / 11
    assert (np.abs(together - expected) < 4.5 * np.sqrt(expected)).all()


def test_random_epochs_and_classes_are_drawn_apart() -> None:
    draws = replace(draws_of([[100], [100]], [10, 10], draw="random"), order=np.arange(200))
    epochs = [draws.epoch(epoch) for epoch in range(50)]
    assert len(set(map(tuple, epochs))) == 50
    same = sum(set(drawn[:10]) == set(drawn[10:] - 100) for drawn in epochs)
    assert same == 0
    # Two independent draws of 10 out of 100 share one example on average.
    shared = [len(np.intersect1d(a, b)) for a, b in pairwise(epochs)]
    assert 1 < np.mean(shared) < 3  # two classes


@both_draws
def test_quotas_of_none_and_of_all(draw: Literal["rotate", "random"]) -> None:
    draws = draws_of([[3, 4], [5], [], [6, 0]], [7, 0, 0, 1], draw=draw)
    all_of_first, second, _, fourth = members_of(draws)
    for epoch in range(9):
        drawn = set(draws.epoch(epoch))
        assert drawn >= set(all_of_first)
        assert not drawn & set(second)
        assert len(drawn & set(fourth)) == 1
    assert set(draws_of([[4]], [4], draw=draw).epoch(3)) == set(range(4))
    assert draws_of([[1]], [1], draw=draw).epoch(1).tolist() == [0]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda draws: pickle.loads(pickle.dumps(draws))]
)
def test_copies_draw_the_same_and_stay_read_only(duplicate: Callable[[Draws], Draws]) -> None:
    draws = draws_of([[20, 13], [9]], [12, 7])
    again = duplicate(draws)
    assert all(np.array_equal(again.epoch(e), draws.epoch(e)) for e in range(5))
    for one in (draws, again):
        with pytest.raises(ValueError, match="read-only"):
            one.order[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            one.quotas[0] = 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draw": "fixed"}, '"rotate", "random", got \'fixed\''),
        ({"seed": -1}, "seed of at least 0"),
        ({"order": np.arange(5.0)}, "order to be int64 with one axis, got float64 "),
        ({"order": np.arange(5)[None]}, r"int64 \(1, 5\)"),
        ({"order": np.array([0, 1, 2, 3, 3])}, "each index in order once"),
        ({"order": np.array([0, 1, 2, 3, -1])}, "at least 0"),
        ({"order": np.arange(6)}, "starts from 0 up to 6"),
        ({"starts": np.array([0, 4, 3, 5])}, "starts from 0 up to 5"),
        ({"starts": np.array([0, 3, 5])}, "each of 3 blocks"),
        ({"starts": np.array([1, 2, 3, 5])}, "starts from 0"),
        ({"starts": np.array([], np.int64)}, "got 0"),
        ({"classes": np.array([0, 1, 0])}, "ascending class ids"),
        ({"classes": np.array([0, 0, 2])}, r"class ids in \[0, 2\)"),
        ({"classes": np.array([-1, 0, 1])}, "class ids"),
        ({"quotas": np.array([4, 1])}, "quotas of at most .3 2."),
        ({"quotas": np.array([1, -1])}, "quotas of at most"),
        ({"quotas": np.array([0, 0])}, "at least one example"),
        ({"quotas": np.array([1, 1], np.int32)}, "quotas to be int64"),
    ],
)
def test_what_does_not_fit_together_is_refused(wrong: dict[str, Any], message: str) -> None:
    good = draws_of([[2, 1], [2]], [2, 1])
    with pytest.raises(ValueError, match=message):
        replace(good, **wrong)


@pytest.mark.parametrize("epoch", [True, 1.0, "1", None, np.bool_(True)])
def test_epochs_are_whole_numbers(epoch: Any) -> None:
    with pytest.raises(TypeError, match="epoch to be a whole number"):
        draws_of([[3]], [1]).epoch(epoch)


def test_epochs_out_of_range_are_refused() -> None:
    for epoch in (-1, 2**63):
        with pytest.raises(ValueError, match=f"epoch of at least 0 and below .* got {epoch}"):
            draws_of([[3]], [1]).epoch(epoch)
    with pytest.raises(ValueError, match=r"refresh_every of at least 1 .* got 0"):
        whole_number("refresh_every", 0, least=1)
