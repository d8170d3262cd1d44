"""What an example is worth, by what is known of its label: whether it stays, and what it counts.

Labels that are probably wrong go; at small budgets what is hard goes, too. Of the rest, what has
been learnt counts less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sage_torch.passes.calibration import ENOUGH, Calibration, Judged
from sage_torch.selection.issues import MOST_WRONG, PROBABLY_WRONG

Floats = NDArray[np.float64]

# The budget term: at a share `keep` of a class, labels go whose odds against chance are below
# `_BUDGET (1 - keep)^_POWER`: the smaller the budget, the more of what is hard. Never more than
# `_MOST_HARD` of the class, and so many times the share that is estimated to be wrong. The power is
# higher where the readout is not trusted: what a weak model finds hard is worth learning as soon as
# there is room for it.
_BUDGET, _POWER, _MOST_HARD, _HARD_BESIDE = 3.5, 6, 0.3, 2.0
_LEAST_TRUST = 0.01
_EXPONENT = 0.5
# From which share of a class on what the readout contradicts counts less, and from which on fully:
# below, the budget term trims most of it.
_CONTRADICTED_LESS = (0.25, 0.5)


class Known(Protocol):
    """What a rating needs of a readout."""

    @property
    def calibration(self) -> Calibration:
        """What its scores say of the data."""

    @property
    def of_sample(self) -> Judged:
        """What is known of the labels of a sample."""

    @property
    def classes(self) -> int:
        """Number of classes C."""


@dataclass(frozen=True, eq=False)
class Rating:
    """Turns what is known of labels into what the trim reads, and into masses.

    Attributes:
        noise: float64 (G,), the greatest probability of being wrong that stays in each class.
        budget: float64 (G,), the least odds that the budget term leaves in each class; 0 where a
            turn shows all examples.
        exponent: Of `1 - p`, in the masses.
        of_odds: float64 (G,), the exponent of the odds against chance, over those and 1.
        classes: C.
    """

    noise: Floats
    budget: Floats
    exponent: float
    of_odds: Floats
    classes: int

    @classmethod
    def of(
        cls, known: Known, groups: NDArray[np.int32], shares: Floats, *, has_budget: bool
    ) -> Rating:
        """Return the rating for a selection.

        Args:
            known: Of the labels.
            groups: int32 (m,), the classes of its sample, or 0 for one threshold for all.
            shares: float64 (G,), the share of each of these that is to be kept.
            has_budget: Whether only the budget is chosen, or a turn shows all that the trim leaves.
        """
        of, sample = known.calibration, known.of_sample
        odds, is_wrong = _odds(sample, known.classes), sample.is_wrong
        noise = np.full(len(shares), PROBABLY_WRONG)
        power = _POWER / max(_LEAST_TRUST, of.trust) ** 0.5
        budget = _BUDGET * (1.0 - shares) ** power if has_budget else np.zeros(len(shares))
        most_hard = of.trust * _MOST_HARD + _HARD_BESIDE * of.rho
        for group in range(len(shares)):
            is_here = groups == group
            most_wrong = -_at(-is_wrong[is_here].astype(np.float64), of.rho * (MOST_WRONG - of.rho))
            noise[group] = max(noise[group], most_wrong)
            budget[group] = min(budget[group], _at(odds[is_here], most_hard))
        exponent = _EXPONENT * min(1.0, of.skill / ENOUGH) * of.trust * of.to_learn
        of_odds = np.zeros(len(shares))
        if has_budget:
            first, whole = _CONTRADICTED_LESS
            of_odds = exponent * np.clip((shares - first) / (whole - first), 0.0, 1.0)
        return cls(noise, budget, exponent, of_odds, known.classes)

    def quality(self, judged: Judged, groups: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return what the trim reads, float32 (n,): what is below 0 goes, the lowest first."""
        is_noise, is_hard = self._trimmed(judged, groups)
        p = judged.probabilities * (1.0 - judged.is_wrong)
        return np.where(is_noise | is_hard, p - np.float32(1.001), p).astype(np.float32)

    def masses(self, judged: Judged, groups: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return how much each example counts, float32 (n,) above 0.

        It is the square root of `1 - p`, times the probability that the label is right. A readout
        that knows little, or is not trusted, does not know what has been learnt: then the root is
        of a higher degree. Where labels were learnt by heart, what looks hard is mostly what nobody
        could learn, or wrong: then all examples count the same.

        At large budgets, which trim little, the same root of `odds / (1 + odds)` is a factor, too,
        with the odds of the label against chance: what is undecided then counts most, and what is
        contradicted less. Wrong labels that were learnt before anybody looked would be preferred
        otherwise.

        Args:
            judged: Of n examples.
            groups: int32 (n,), as in `of`.
        """
        odds = _odds(judged, self.classes)
        left = np.maximum(1.0 - judged.probabilities.astype(np.float64), 1e-6) ** self.exponent
        left *= np.maximum(odds / (1.0 + odds), 1e-6) ** self.of_odds[groups]
        masses: NDArray[np.float32] = np.maximum(left * (1.0 - judged.is_wrong), 1e-6).astype(
            np.float32
        )
        return masses

    def counts(self, judged: Judged, groups: NDArray[np.int32]) -> tuple[int, int]:
        """Return how many examples are below what stays by the noise term, and by the budget."""
        is_noise, is_hard = self._trimmed(judged, groups)
        return int(is_noise.sum()), int((is_hard & ~is_noise).sum())

    @property
    def threshold(self) -> float:
        """The greatest of the odds that the budget term asks for."""
        return float(self.budget.max())

    def _trimmed(
        self, judged: Judged, groups: NDArray[np.int32]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        is_noise = judged.is_wrong > self.noise[groups].astype(np.float32)
        return is_noise, _odds(judged, self.classes) < self.budget[groups]


def _odds(judged: Judged, classes: int) -> Floats:
    """Return the odds against chance `(C - 1) p / (1 - p)`, float64 (n,); 1 is a guess."""
    p = judged.probabilities.astype(np.float64)
    odds: Floats = (classes - 1) * p / np.maximum(1.0 - p, 1e-9)
    return odds


def _at(values: Floats, share: float) -> float:
    """Return the value below which this share of the values lies; infinity beyond the last."""
    place = int(share * len(values))
    return float(np.partition(values, place)[place]) if place < len(values) else np.inf
