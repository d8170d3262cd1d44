"""What labels of a class are flipped to, where wrong labels are not spread over all classes.

Whoever mixes up two names does so whatever the example looks like; a hard example gets the label of
what it looks like. So contradictions of confident predictions are counted, and only those whose
label the scores hardly speak for: what is hard is not among them, what is flipped is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Chosen on benchmarks/quality/labels.py, seeds from 200 on, and for fewer labels flipped to any
# class, where nothing may be lost.
_CONFIDENT = 0.25  # share of the predictions of each class, the most confident ones
_UNLIKE = 0.25  # share of them whose scores for a label are lowest
_ENOUGH = 100  # confident predictions from which on the share of what contradicts them is known
_EVENLY = 2.0  # contradictions of each class that are shared by all other classes beforehand
_NONE, _CLEAR = 0.1, 0.2  # concentration up to which nothing is made of it, and from which on
_MOST = 0.7  # what it counts at most
_ERRORS = 2.0  # standard errors that are taken off the concentration


@dataclass(frozen=True, eq=False)
class Unlikely:
    """Confident predictions that are contradicted by a label which the scores hardly speak for.

    Attributes:
        counts: float64 (C, C), how many by predicted class and label.
        confident: How many confident predictions there are, contradicted or not.
    """

    counts: Floats
    confident: int

    @classmethod
    def of(cls, scores: Floats, class_ids: NDArray[np.int32], confidence: Floats) -> Unlikely:
        """Count them.

        Args:
            scores: float64 (n, C), of the regression without each example.
            class_ids: int32 (n,).
            confidence: float64 (n,), higher where a prediction is more certain.

        Cost:
            A quarter of the scores is partly sorted.
        """
        classes = scores.shape[1]
        counts, confident = np.zeros((classes, classes)), 0
        predicted = scores.argmax(1)
        for class_id in range(classes):
            members = np.flatnonzero(predicted == class_id)
            most = round(_CONFIDENT * len(members))
            members = members[np.argsort(-confidence[members], kind="stable")[:most]]
            confident += len(members)
            if len(members) == 0:
                continue
            low = np.quantile(scores[members], _UNLIKE, axis=0)
            labels = class_ids[members]
            is_unlike = (labels != class_id) & (scores[members, labels] <= low[labels])
            counts[class_id] = np.bincount(labels[is_unlike], minlength=classes)
        return cls(counts, confident)

    @property
    def share(self) -> float:
        """Share of labels that are wrong if they are so whatever the example looks like.

        A wrong label is then as often among the lowest quarter of the scores as any other. Where
        labels are hard and right, they hardly ever are. It is 1 where too little was counted.
        """
        if self.confident < _ENOUGH:
            return 1.0
        return min(1.0, float(self.counts.sum()) / _UNLIKE / self.confident)

    @property
    def concentration(self) -> float:
        """How far the labels of each class agree, rather too low: 1 if wholly, 0 if by chance.

        It is estimated from the share of pairs that agree, less two standard errors.
        """
        of_class, others = self.counts.sum(1), len(self.counts) - 1
        pairs = float((of_class * (of_class - 1.0)).sum())
        if pairs == 0.0 or others < 2:
            return 0.0
        agreeing = float((self.counts * (self.counts - 1.0)).sum())
        agreeing -= _ERRORS * np.sqrt(2.0 * pairs / others)
        return max(0.0, float((agreeing / pairs * others - 1.0) / (others - 1)))

    def flips(self) -> Floats | None:
        """Return which labels the wrong ones of each class get; None if all others alike.

        Below a concentration of 0.1 nothing is made of it: on CIFAR-10, labels flipped to any class
        give up to 0.07 where a tenth or more are wrong (0.12 for a twentieth), to the next class
        0.2.

        Returns:
            float64 (C, C), 0 where a label is right and above 0 elsewhere; rows sum to 1.
        """
        clear = (self.concentration - _NONE) / (_CLEAR - _NONE)
        trust = _MOST * float(np.clip(clear, 0.0, 1.0))
        if trust == 0.0:
            return None
        counts, classes = self.counts, len(self.counts)
        evenly = (1.0 - np.eye(classes)) / (classes - 1)
        shares = (counts + _EVENLY * evenly) / (counts.sum(1, keepdims=True) + _EVENLY)
        found: Floats = trust * shares + (1.0 - trust) * evenly
        return found
