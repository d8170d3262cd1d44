"""What a stream keeps is the share that was asked for, of the highest scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sage_torch.stream.rate import RateKeeper

TOTAL, BATCH = 100_000, 250
Batches = Callable[[np.random.Generator, int], tuple[NDArray[np.float32], NDArray[np.int32]]]


def uniform(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    ids = random.integers(0, 10, BATCH)
    return random.random(BATCH, dtype=np.float32), ids.astype(np.int32)


def equal(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    return np.ones(BATCH, np.float32), uniform(random, first)[1]


def two_values(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    scores, ids = uniform(random, first)
    return np.round(scores), ids


def jump(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    scores, ids = uniform(random, first)
    return scores - np.float32(first >= TOTAL // 2), ids


def drift(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    scores, ids = uniform(random, first)
    return scores + np.float32(3 * first / TOTAL), ids


def sorted_by_class(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    return uniform(random, first)[0], np.full(BATCH, 10 * first // TOTAL, np.int32)


def thousand_classes(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    ids = random.integers(0, 1_000, BATCH)
    return uniform(random, first)[0], ids.astype(np.int32)


def without_scores(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
    return np.full(BATCH, np.nan, np.float32), uniform(random, first)[1]


def run(keeper: RateKeeper, batches: Batches, total: int = TOTAL) -> list[NDArray[np.bool_]]:
    random = np.random.default_rng(0)
    return [keeper.decide(*batches(random, first)) for first in range(0, total, BATCH)]


@pytest.mark.parametrize("keep", [0.05, 0.25, 0.9])
@pytest.mark.parametrize("batches", [uniform, drift])
def test_the_share_is_met_within_a_percent(batches: Batches, keep: float) -> None:
    keeper = RateKeeper(keep, seed=0)
    kept = np.concatenate(run(keeper, batches))
    assert (keeper.seen, keeper.kept) == (TOTAL, kept.sum())
    assert kept.mean() == pytest.approx(keep, rel=0.01)


@pytest.mark.parametrize(
    "batches",
    [
        equal,
        two_values,
        jump,
        sorted_by_class,
        pytest.param(thousand_classes, marks=pytest.mark.slow),
        without_scores,
    ],
)
def test_the_share_is_met_whatever_the_scores_are(batches: Batches) -> None:
    kept = np.concatenate(run(RateKeeper(0.25, seed=0), batches))
    assert kept.mean() == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("batches", [uniform, sorted_by_class, drift])
def test_the_share_of_each_class_is_met(batches: Batches) -> None:
    kept = np.concatenate(run(RateKeeper(0.25, seed=0), batches))
    random = np.random.default_rng(0)
    ids = np.concatenate([batches(random, first)[1] for first in range(0, TOTAL, BATCH)])
    for one in range(10):
        assert kept[ids == one].mean() == pytest.approx(0.25, rel=0.02)


def test_the_highest_scores_of_each_class_are_kept() -> None:
    def shifted(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
        scores, ids = uniform(random, first)
        return scores + ids, ids

    kept = np.concatenate(run(RateKeeper(0.25, seed=0), shifted, 20_000))
    random = np.random.default_rng(0)
    batches = [shifted(random, first) for first in range(0, 20_000, BATCH)]
    scores, ids = (np.concatenate([batch[part] for batch in batches]) for part in (0, 1))
    wanted = scores - ids > 0.75
    assert (kept & wanted).sum() > 0.93 * wanted.sum()


def test_examples_without_a_score_are_kept_at_random() -> None:
    def half(random: np.random.Generator, first: int) -> tuple[NDArray, NDArray]:
        scores, ids = uniform(random, first)
        scores[::2] = np.nan
        return scores, ids

    kept = np.stack(run(RateKeeper(0.25, seed=0), half))
    assert kept[:, ::2].mean() == pytest.approx(0.25, rel=0.03)
    assert kept[:, 1::2].mean() == pytest.approx(0.25, rel=0.03)


def test_everything_is_kept_at_rate_one() -> None:
    assert np.concatenate(run(RateKeeper(1.0, seed=0), jump, 10_000)).all()


def test_the_seed_names_the_draws() -> None:
    runs = [np.concatenate(run(RateKeeper(0.5, seed), equal, 1_000)) for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_a_state_goes_on_exactly() -> None:
    keeper, random = RateKeeper(0.25, seed=0), np.random.default_rng(1)
    for first in range(0, 5_000, BATCH):
        keeper.decide(*uniform(random, first))
    other = RateKeeper(0.25, seed=7)
    other.load_state_dict(keeper.state_dict())
    assert (other.seen, other.kept) == (keeper.seen, keeper.kept)
    for first in range(0, 5_000, BATCH):
        batch = uniform(random, first)
        assert (keeper.decide(*batch) == other.decide(*batch)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": torch.zeros(10, 3)},
        {"scores": torch.zeros(10, 512, dtype=torch.float64)},
        {"seen": [1] * 9},
        {"kept": [-1] * 10},
        {"scored": [0.5] * 10},
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(wrong: dict[str, object]) -> None:
    keeper = RateKeeper(0.25, seed=0)
    run(keeper, uniform, 1_000)
    before = keeper.state_dict()
    with pytest.raises(ValueError, match="expected"):
        keeper.load_state_dict(before | wrong)
    after = keeper.state_dict()
    assert torch.equal(before["scores"], after["scores"])
    assert (before["seen"], before["kept"]) == (after["seen"], after["kept"])
