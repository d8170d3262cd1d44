"""Which labels are taken to be wrong."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

# The trim takes labels to be wrong that are so with more than this probability; never more than a
# share `rho (MOST_WRONG - rho)` of them, where a share `rho` is wrong.
PROBABLY_WRONG, MOST_WRONG = 0.25, 1.5
# The same for labels that are worth a look: to look costs less than to lose a right label.
_WORTH_A_LOOK, _MOST = 0.2, 1.57


def is_share(value: object) -> TypeGuard[float]:
    """Return whether this is a number from 0 to 1; a damaged file may hold anything."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def label_issues(
    label_scores: NDArray[np.float32],
    is_wrong: NDArray[np.float32],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    rho: float,
) -> NDArray[np.bool_]:
    """Return which labels are taken to be wrong, bool (N,): those worth a look.

    It is somewhat more than the trim takes to be wrong in all classes together, those of the lowest
    scores; equal scores go in the order of the data set. A label that is the predicted one is never
    among them. benchmarks/quality/labels.py compares this with a threshold of `is_wrong`, and with
    cleanlab; both constants were chosen there, on seeds from 200 on.

    Args:
        label_scores: float32 (N,), as in `Selection`.
        is_wrong: float32 (N,), as there.
        labels: int64 (N,).
        predicted: int64 (N,), the predicted labels.
        rho: The share of labels that may be wrong.

    Cost:
        One sort of N numbers.
    """
    most = int(rho * (_MOST - rho) * len(labels))
    count = min(most, int((is_wrong > _WORTH_A_LOOK).sum()))
    lowest = np.argsort(label_scores, kind="stable")[:count]
    is_issue = np.zeros(len(labels), bool)
    is_issue[lowest] = labels[lowest] != predicted[lowest]
    return is_issue
