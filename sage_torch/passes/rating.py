"""What an example is worth, by the probability of its label: whether it stays, what it counts.

Labels that are probably wrong go; at small budgets what is hard goes, too. Of the rest, what has
been learnt counts less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_torch.passes.readout import ENOUGH, Readout

Floats = NDArray[np.float64]

# The budget term: at a share `keep` of a class, labels go whose odds against chance are below
# `_BUDGET (1 - keep)^_POWER`: the smaller the budget, the more of what is hard. Never more than
# `_MOST_HARD` of the class, and so many times the share that is estimated to be wrong.
_BUDGET, _POWER, _MOST_HARD = 3.5, 6, 0.3
_HARD_BESIDE = 2.0  # times the share of wrong labels
# The noise term: labels go that are wrong with more than this probability, but none better than a
# guess, and never more of a class than `rho (1.5 - rho)`, where a share `rho` is wrong.
_WRONG, _MOST_WRONG = 0.25, 1.5
_EXPONENT = 0.5


@dataclass(frozen=True)
class Rating:
    """Turns probabilities of labels into what the trim reads, and into masses.

    Attributes:
        noise: float64 (G,), the least odds of each group that the noise term leaves.
        budget: float64 (G,), the same of the budget term; 0 where a turn shows all examples.
        chance: Probability that a label is wrong and yet as it is: `rho / (C - 1)`.
        exponent: Of the probability of being wrong, in the masses.
        classes: C.
    """

    noise: Floats
    budget: Floats
    chance: float
    exponent: float
    classes: int

    @classmethod
    def of(
        cls, readout: Readout, groups: NDArray[np.int32], shares: Floats, *, has_budget: bool
    ) -> Rating:
        """Return the rating for a selection.

        Args:
            readout: Of the features.
            groups: int32 (m,), the groups of its sample.
            shares: float64 (G,), the share of each group that is to be kept.
            has_budget: Whether only the budget is chosen, or a turn shows all that the trim leaves.
        """
        classes = readout.classes
        odds = _odds(readout.of_sample, classes)
        # What untrained features fail to explain is no sign of a wrong or a hard label.
        trust = min(1.0, readout.skill / ENOUGH)
        believed = 1.0 if readout.is_trained else trust
        rho = believed * readout.rho
        chance = rho / (classes - 1)
        least = min(chance / _WRONG, 1.0)  # where P(wrong) = chance / p is `_WRONG`
        least_odds = min(1.0, float(_odds(np.array([least]), classes)[0]))
        noise = np.full(len(shares), least_odds)
        budget = _BUDGET * (1.0 - shares) ** _POWER if has_budget else np.zeros(len(shares))
        most_hard = believed * _MOST_HARD + _HARD_BESIDE * rho
        for group in range(len(shares)):
            of_group = odds[groups == group]
            noise[group] = min(noise[group], _at(of_group, rho * (_MOST_WRONG - rho)))
            budget[group] = min(budget[group], _at(of_group, most_hard))
        return cls(noise, budget, chance, _EXPONENT * trust, classes)

    def quality(
        self, probabilities: NDArray[np.float32], groups: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Return odds less the least that stay, float32 (n,): what is below 0 goes."""
        least = np.maximum(self.noise, self.budget)[groups]
        left: NDArray[np.float32] = (_odds(probabilities, self.classes) - least).astype(np.float32)
        return left

    def masses(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how much each example counts, float32 (n,) above 0.

        It is the square root of `1 - p`, times the probability that the label is right. A readout
        that knows little does not know what has been learnt: then the root is of a higher degree.
        """
        p = np.maximum(probabilities.astype(np.float64), 1e-12)
        is_right = np.maximum(1.0 - self.chance / p, 0.0)
        left = np.maximum(1.0 - p, 1e-6) ** self.exponent
        masses: NDArray[np.float32] = np.maximum(left * is_right, 1e-6).astype(np.float32)
        return masses

    def settings(
        self, probabilities: NDArray[np.float32], groups: NDArray[np.int32]
    ) -> dict[str, Any]:
        """Return what the settings of a selection say of the trim."""
        odds = _odds(probabilities, self.classes)
        is_noise = odds < self.noise[groups]
        is_hard = ~is_noise & (odds < self.budget[groups])
        return {
            "threshold": float(np.maximum(self.noise, self.budget).max()),
            "trimmed_by_noise": int(is_noise.sum()),
            "trimmed_by_budget": int(is_hard.sum()),
        }


def _odds(probabilities: NDArray[Any], classes: int) -> Floats:
    """Return the odds against chance `(C - 1) p / (1 - p)`, float64 (n,); 1 is a guess."""
    p = probabilities.astype(np.float64)
    odds: Floats = (classes - 1) * p / np.maximum(1.0 - p, 1e-9)
    return odds


def _at(values: Floats, share: float) -> float:
    """Return the value below which this share of the values lies; infinity beyond the last."""
    place = int(share * len(values))
    return float(np.partition(values, place)[place]) if place < len(values) else np.inf
