"""What labels of a class are flipped to, where wrong labels are not spread over all classes.

Whoever mixes up two names does so whatever the example looks like; a hard example gets the label of
what it looks like. So contradictions of confident predictions are counted, and only those whose
label the scores hardly speak for: what is hard is not among them, what is flipped is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Chosen on benchmarks/quality/labels.py, seeds from 200 on, and for fewer labels flipped to any
# class, where nothing may be lost.
_CONFIDENT = 0.25  # share of the predictions of each class, the most confident ones
_UNLIKE = 0.25  # share of them whose scores for a label are lowest
_EVENLY = 2.0  # contradictions of each class that are shared by all other classes beforehand
_NONE, _CLEAR = 0.1, 0.2  # concentration up to which nothing is made of it, and from which on
_MOST = 0.7  # what it counts at most
_ERRORS = 2.0  # standard errors that are taken off the concentration


def flips(scores: Floats, class_ids: NDArray[np.int32], confidence: Floats) -> Floats | None:
    """Return which labels the wrong ones of each class get; None if all others alike.

    Where contradictions of each class get the same label, their concentration is 1; where they get
    all others alike, it is 0. It is estimated from the share of pairs of them that agree, less two
    standard errors. Below 0.1 nothing is made of it: on CIFAR-10, labels flipped to any class
    give up to 0.07 where a tenth or more are wrong (0.12 for a twentieth), to the next class 0.2.

    Args:
        scores: float64 (n, C), of the regression without each example.
        class_ids: int32 (n,).
        confidence: float64 (n,), higher where a prediction is more certain.

    Returns:
        float64 (C, C), 0 where a label is right and above 0 elsewhere; rows sum to 1.

    Cost:
        A quarter of the scores is partly sorted.
    """
    classes = scores.shape[1]
    if classes < 3:
        return None
    counts = _contradictions(scores, class_ids, confidence)
    trust = _MOST * float(np.clip((_concentration(counts) - _NONE) / (_CLEAR - _NONE), 0.0, 1.0))
    if trust == 0.0:
        return None
    evenly = (1.0 - np.eye(classes)) / (classes - 1)
    shares = (counts + _EVENLY * evenly) / (counts.sum(1, keepdims=True) + _EVENLY)
    found: Floats = trust * shares + (1.0 - trust) * evenly
    return found


def _contradictions(
    scores: Floats, class_ids: NDArray[np.int32], confidence: Floats
) -> NDArray[np.float64]:
    """Return by predicted class and label (C, C) how many confident predictions are contradicted.

    Only by labels whose score is low among those of the same prediction.
    """
    classes = scores.shape[1]
    counts = np.zeros((classes, classes))
    predicted = scores.argmax(1)
    for class_id in range(classes):
        members = np.flatnonzero(predicted == class_id)
        most = round(_CONFIDENT * len(members))
        members = members[np.argsort(-confidence[members], kind="stable")[:most]]
        if len(members) == 0:
            continue
        low = np.quantile(scores[members], _UNLIKE, axis=0)
        labels = class_ids[members]
        is_unlike = (labels != class_id) & (scores[members, labels] <= low[labels])
        counts[class_id] = np.bincount(labels[is_unlike], minlength=classes)
    return counts


def _concentration(counts: NDArray[np.float64]) -> float:
    """Return how far contradictions agree (see `flips`), rather too low; at most 1."""
    of_class, others = counts.sum(1), len(counts) - 1
    pairs = float((of_class * (of_class - 1.0)).sum())
    if pairs == 0.0:
        return 0.0
    agreeing = float((counts * (counts - 1.0)).sum()) - _ERRORS * np.sqrt(2.0 * pairs / others)
    return float((agreeing / pairs * others - 1.0) / (others - 1))
