"""What labels are flipped to, and what is suggested in place of a label."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from sage_torch.passes.calibration import calibrated
from sage_torch.passes.flips import Unlikely

N, CLASSES = 4_000, 5
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]


def noisy(
    kind: str, seed: int = 0, wrong: float = 0.25, classes: int = CLASSES
) -> tuple[Floats, Ids, Ids]:
    """Return scores (N, C), labels and true classes."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, N)
    scores = 2.0 * np.eye(classes)[true] + random.normal(size=(N, classes))
    is_wrong = random.random(N) < wrong
    if kind == "hard":  # what is of class 1 or 0 often looks like the other of them
        for one, other in ((0, 1), (1, 0)):
            scores[true == one, other] += random.exponential(1.0, (true == one).sum())
    steps = np.ones(N, np.int64) if kind == "pair" else random.integers(1, classes, N)
    labels = np.where(is_wrong, (true + steps) % classes, true)
    return scores, labels.astype(np.int32), true.astype(np.int32)


def found(scores: Floats, labels: Ids) -> Floats | None:
    return Unlikely.of(scores, labels, scores.max(1)).flips()


def test_labels_flipped_to_the_next_class_are_known() -> None:
    scores, labels, _ = noisy("pair")
    shares = found(scores, labels)
    assert shares is not None
    assert shares.sum(1) == pytest.approx(np.ones(CLASSES))
    assert (np.diag(shares) == 0).all()
    assert (shares + np.eye(CLASSES) > 0).all()
    assert (shares.argmax(1) == (np.arange(CLASSES) + 1) % CLASSES).all()
    assert shares.max(1).min() > 0.6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["symmetric", "hard"])
def test_nothing_is_made_of_even_flips(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, labels, _ = noisy(kind, seed, wrong=0.1 if kind == "hard" else 0.25)
    assert found(scores, labels) is None
    if kind == "hard":  # which is seen as flips where likely labels count, too
        monkeypatch.setattr("sage_torch.passes.flips._UNLIKE", 1.0)
        assert found(scores, labels) is not None


def test_two_classes_and_few_examples_say_nothing() -> None:
    scores, labels, _ = noisy("pair", classes=2)
    assert found(scores, labels) is None
    scores, labels, _ = noisy("pair")
    assert found(scores[:12], labels[:12]) is None
    assert found(scores[:1], labels[:1]) is None


def test_suggestions_follow_the_flips() -> None:
    scores, labels, true = noisy("pair")
    judged = calibrated(scores, labels).judged(scores, labels)
    by_score = scores.argmax(1)
    is_wrong = labels != true
    right, by_score_right = (
        part[is_wrong] == true[is_wrong] for part in (judged.predicted, by_score)
    )
    assert right.mean() > by_score_right.mean() + 0.05
    assert np.array_equal(judged.predicted == labels, by_score == labels)
    assert judged.predicted.dtype == np.int32


def test_suggestions_are_of_the_highest_score_where_flips_are_even() -> None:
    scores, labels, _ = noisy("symmetric")
    judged = calibrated(scores, labels).judged(scores, labels)
    assert np.array_equal(judged.predicted, scores.argmax(1))
