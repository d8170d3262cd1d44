"""What labels are flipped to, and what is suggested in place of a label."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from sage_torch.passes.calibration import FirstReading, calibrated
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
    return unlikely(scores, labels).flips()


def unlikely(scores: Floats, labels: Ids) -> Unlikely:
    return Unlikely.of(scores, labels, scores.max(1))


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


@pytest.mark.parametrize("wrong", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_labels_wrong_whatever_examples_look_like_are_counted(kind: str, wrong: float) -> None:
    scores, labels, _ = noisy(kind, wrong=wrong, classes=10)
    assert unlikely(scores, labels).share == pytest.approx(wrong, abs=0.06)
    assert calibrated(scores, labels).rho == pytest.approx(wrong, abs=0.06)


@pytest.mark.parametrize("seed", range(5))
def test_hard_labels_are_not_taken_for_wrong_ones(seed: int) -> None:
    # A label is drawn by what scores say, so that some of the surest predictions miss it.
    random = np.random.default_rng(seed)
    scores = random.normal(size=(N, 10))
    labels = (1.5 * scores + random.gumbel(size=scores.shape)).argmax(1).astype(np.int32)
    contradicted = scores.argmax(1) != labels
    surest = np.argsort(-scores.max(1))[: N // 20]
    assert contradicted[surest].mean() > 0.15
    assert unlikely(scores, labels).share < 0.1
    assert calibrated(scores, labels).rho < 0.06


def test_too_few_confident_predictions_say_nothing_of_wrong_labels() -> None:
    scores, labels, _ = noisy("symmetric")
    few = unlikely(scores[:380], labels[:380])
    assert few.confident < 100
    assert few.share == 1.0
    assert unlikely(scores[:420], labels[:420]).share < 1.0


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


def test_what_may_be_hard_is_shown_but_not_dropped() -> None:
    scores, labels, _ = noisy("hard", wrong=0.1, classes=10)
    found = calibrated(scores, labels)
    assert 0.0 < found.rho < found.rho_at_most
    later = found.after(FirstReading(0.4, 0.1, 0.5))
    assert later.rho_at_most == max(later.rho, found.rho_at_most)
    two, labels, _ = noisy("symmetric", classes=2)
    found = calibrated(two, labels)
    assert found.rho == found.rho_at_most > 0.0  # nothing tells hard from wrong
