"""How near one ranking of examples comes to another of the same examples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Flags = NDArray[np.bool_]


def spearman(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the rank correlation of two scores (N,)."""
    return float(spearmanr(found, wanted).statistic)


def top_quarter(scores: NDArray[Any]) -> Flags:
    """Mark the quarter of highest scores, ties by index."""
    marked = np.zeros(len(scores), bool)
    marked[np.argsort(-scores, kind="stable")[: len(scores) // 4]] = True
    return marked


def top_quarter_found(
    found: NDArray[Any], wanted: NDArray[Any], labels: NDArray[Any] | None = None
) -> float:
    """Return the share of the wanted top quarter that is in the one found, too.

    With labels (N,): of the top quarters of all classes.
    """
    labels = np.zeros(len(wanted)) if labels is None else labels
    members = [labels == one for one in np.unique(labels)]
    both = [int((top_quarter(found[m]) & top_quarter(wanted[m])).sum()) for m in members]
    return sum(both) / sum(int(m.sum()) // 4 for m in members)


def of_either(found: Flags, wanted: Flags) -> float | None:
    """Return the share of what either marks that both mark; None where neither marks anything."""
    either = int((found | wanted).sum())
    return int((found & wanted).sum()) / either if either else None
