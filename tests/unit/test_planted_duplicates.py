"""The benchmark of near duplicates: what it plants, and how it counts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.duplicates import judged
from benchmarks.quality.planted import CHANGES, Planted, alikeness, planted


def images(count: int, channels: int) -> np.ndarray:
    smooth = np.random.default_rng(0).integers(0, 256, (count, channels, 3, 3), np.uint8)
    return smooth.repeat(4, axis=2).repeat(4, axis=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_like_their_source_and_of_its_class(channels: int) -> None:
    own, labels = images(80, channels), np.arange(80)
    mixed = planted(own, labels, total=60, copies=10, seed=3)
    assert mixed.images.shape == (60, channels, 12, 12)
    copies = np.flatnonzero(mixed.source >= 0)
    assert len(copies) == len(set(mixed.source[copies].tolist())) == 10
    assert np.bincount(mixed.change[copies]).tolist() == [2] * len(CHANGES)
    assert (mixed.labels[copies] == mixed.labels[mixed.source[copies]]).all()
    assert (mixed.images[copies] != mixed.images[mixed.source[copies]]).any((1, 2, 3)).all()
    alike = alikeness(mixed.images[copies], mixed.images[mixed.source[copies]])
    assert (alike > 0.8).all()
    is_shifted = mixed.change[copies] == list(CHANGES).index("shift")
    assert alike[is_shifted] == pytest.approx(1)
    others = np.roll(mixed.source[copies], 1)
    assert (alikeness(mixed.images[copies], mixed.images[others]) < alike).all()


def test_recall_and_precision_are_of_pairs() -> None:
    mixed = Planted(
        images(5, 1),
        np.zeros(5, np.int64),
        np.array([-1, 0, -1, -1, 3]),
        np.array([-1, 2, -1, -1, 1]),
    )
    found = judged(np.array([1, -1, 1, -1, -1]), mixed)
    assert (found["recall"], found["crop"], found["shift"]) == (0.5, 1.0, 0.0)
    assert (found["joined"], found["precision"]) == (2, 0.5)
    assert judged(np.full(5, -1), mixed)["precision"] is None
