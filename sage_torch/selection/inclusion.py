"""Epochs that show each example as often as it is worth it: exactly k of them, as evenly as can be.

An example is included in an epoch with a probability in proportion to `(1 - p)^e (1 - w)`: what the
model has learnt counts less, and so does what is probably wrong. `p` is the probability of its
label, `w` that the label is wrong. The exponent falls to 0 while the data pass by: early in
training, what is hard is worth more; later, the network would miss the rest. Where a tenth of the
labels is wrong, it is 0 from the start: most of what is hard is wrong then.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PASSES = 6.0  # over the data, from the first draw on, after which the exponent is 0
_SURE = 1.0 - 1e-6
_GOLDEN = (5**0.5 - 1) / 2
_LEAST = 1e-6  # mass of what nothing speaks for: it comes only where a quota needs it


def masses(
    hard: NDArray[np.float32], right: NDArray[np.float32], exponent: float, passed: float
) -> Floats:
    """Return how much each example counts, float64 (n,) above 0.

    Args:
        hard: float32 (n,) in [0, 1], `1 - p`.
        right: float32 (n,) in [0, 1], `1 - w`.
        exponent: At the first draw.
        passed: Passes over the data since then.
    """
    falling = exponent * max(0.0, 1.0 - passed / PASSES)
    found: Floats = np.maximum(hard.astype(np.float64), _LEAST) ** falling * right
    return np.maximum(found, _LEAST)


def probabilities(masses: Floats, quota: int) -> Floats:
    """Return inclusion probabilities `min(1, c m)` (n,) that sum to the quota.

    Args:
        masses: float64 (n,) above 0.
        quota: 1 to n.

    Cost:
        O(n log n).
    """
    n = len(masses)
    descending = np.sort(masses)[::-1]
    left = np.cumsum(descending[::-1])[::-1]  # sums of the masses from each place on
    scales = (quota - np.arange(quota)) / left[:quota]
    # The first number of examples at 1 that leaves none of the others above 1.
    fits = np.flatnonzero(scales * descending[:quota] <= 1.0)
    if not len(fits) or quota == n:
        ones = np.zeros(n)
        ones[np.argsort(-masses, kind="stable")[:quota]] = 1.0
        return ones
    included: Floats = np.minimum(1.0, scales[fits[0]] * masses)
    return included


def drawn(included: Floats, order: NDArray[np.int64], epoch: int, quota: int) -> NDArray[np.int64]:
    """Return the places (quota,) that an epoch takes, by systematic sampling.

    Laid end to end in a fixed order, the probabilities are as long as the quota. A ruler with one
    mark per unit takes the examples that its marks fall on, and is shifted from epoch to epoch by
    the golden ratio: over any number of epochs, each example comes nearly as often as its
    probability says, at even distances.

    Args:
        included: float64 (n,), probabilities that sum to the quota.
        order: int64 (n,), a permutation of the places.
        epoch: From 0.
        quota: How many to take.

    Reference:
        Madow, "On the Theory of Systematic Sampling, II", Annals of Mathematical Statistics 1949.
    """
    is_sure = included >= _SURE  # beyond rounding, no other is longer than a unit
    sure, others = np.flatnonzero(is_sure), order[~is_sure[order]]
    count = quota - len(sure)
    if count == 0:
        return sure
    ends = np.cumsum(included[others])
    ends *= count / ends[-1]
    ends[-1] = count
    marks = np.floor(ends + (0.5 + epoch * _GOLDEN) % 1.0)
    return np.concatenate([sure, others[np.diff(marks, prepend=0.0) > 0]])
