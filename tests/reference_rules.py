"""The rules beside herding, in plain float64 NumPy: slow, small, and written from the papers alone.

* Facility location, greedily: Nemhauser, Wolsey, Fisher, Math. Programming 1978.
* Coverage-centric selection: Zheng, Liu, Lai, Prakash, ICLR 2023.
* Successive sampling in proportion to weights: Efraimidis, Spirakis 2006.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from reference import Floats, Ints, Trim, bandwidth, herd, trimmed, unit

Pick = Callable[[Floats, int], Ints]
STRATA = 50
ROUNDING = 1e-9


def kernel(z: npt.ArrayLike) -> Floats:
    """K (n, n) of unit rows: exp(-|z_i - z_j|^2 / (2 tau^2))."""
    rows = unit(z)
    squared = np.array([((rows - row) ** 2).sum(axis=1) for row in rows])
    values: Floats = np.exp(-squared.reshape(len(rows), len(rows)) / (2 * bandwidth(z) ** 2))
    return values


def coverage(similarity: Floats, picked: list[int] | Ints) -> float:
    """sum_i max_{s in picked} K_is, what facility location maximises; 0 for nothing picked."""
    return float(similarity[:, picked].max(axis=1).sum()) if len(picked) else 0.0


def cover(z: npt.ArrayLike, k: int) -> Ints:
    """k rows in the order of picking: each step adds the row that raises the coverage most.

    Gains that differ by rounding alone are equal, and the lower index wins: where two rows only
    have each other near, picking either gains the same by definition.
    """
    similarity = kernel(z)
    nearest = np.zeros(len(similarity))  # K to the nearest pick
    picked: list[int] = []
    for _ in range(k):
        gain = np.maximum(similarity - nearest, 0).sum(axis=1)
        gain[picked] = -np.inf
        picked.append(int(np.argmax(gain >= gain.max() - ROUNDING)))
        nearest = np.maximum(nearest, similarity[picked[-1]])
    return np.array(picked, dtype=np.int64)


def by_class(
    pick: Pick,
    z: npt.ArrayLike,
    margins: npt.ArrayLike,
    class_ids: Ints,
    quotas: Ints,
    trim: Trim = "negative",
) -> Ints:
    """Trim each class, then let `herd` or `cover` pick its quota; one block a class."""
    z, of_all = np.asarray(z, np.float64), np.asarray(margins, np.float64)
    kept = [np.zeros(0, np.int64)]
    for class_id, quota in enumerate(np.asarray(quotas).tolist()):
        members = np.flatnonzero(class_ids == class_id)
        left = members[trimmed(of_all[members], quota, trim)]
        kept.append(left[pick(z[left], quota)] if quota else kept[0])
    return np.sort(np.concatenate(kept))


def herding_order(
    z: npt.ArrayLike, margins: npt.ArrayLike, class_ids: Ints, quotas: Ints, trim: Trim
) -> Ints:
    """All that the trim leaves, class by class, in the order in which herding picks them."""
    z, of_all = np.asarray(z, np.float64), np.asarray(margins, np.float64)
    parts = [np.zeros(0, np.int64)]
    for class_id, quota in enumerate(np.asarray(quotas).tolist()):
        members = np.flatnonzero(class_ids == class_id)
        left = members[trimmed(of_all[members], quota, trim)]
        if len(left):
            parts.append(left[herd(z[left], len(left))])
    return np.concatenate(parts)


def strata(agreement: npt.ArrayLike) -> Ints:
    """The stratum (n,) of each example: 50 of equal width over the range, all 0 where it is 0."""
    scores = np.asarray(agreement, np.float64)
    width = np.ptp(scores)
    if width == 0:
        return np.zeros(len(scores), np.int64)
    places = np.floor((scores - scores.min()) / width * STRATA).astype(np.int64)
    return np.minimum(places, STRATA - 1)


def stratum_quotas(sizes: npt.ArrayLike, budget: int) -> Ints:
    """CCS, algorithm 1: from the smallest stratum up, an even share of what is left to give."""
    sizes = np.asarray(sizes, np.int64)
    quotas = np.zeros_like(sizes)
    by_size = np.argsort(sizes, kind="stable")
    for done, place in enumerate(by_size):
        quotas[place] = min(sizes[place], (budget - quotas.sum()) // (len(sizes) - done))
    return quotas


def inclusion(weights: npt.ArrayLike, k: int) -> Floats:
    """The probability (n,) of being among k draws, one after another, without replacement."""
    weights = np.asarray(weights, np.float64)
    if k == 0:
        return np.zeros(len(weights))
    total = np.zeros(len(weights))
    for first, share in enumerate(weights / weights.sum()):
        rest = weights.copy()
        rest[first] = 0.0
        total += share * (inclusion(rest, k - 1) + (np.arange(len(weights)) == first))
    return total


def weights(z: npt.ArrayLike, class_ids: Ints, left: Ints, kept: Ints) -> Floats:
    """How many of `left` each of `kept` stands for: of its class, nearest by direction, itself."""
    units, counts = unit(z), dict.fromkeys(kept.tolist(), 1.0)
    for index in np.setdiff1d(left, kept).tolist():
        candidates = kept[class_ids[kept] == class_ids[index]]
        if len(candidates):
            nearest = candidates[int(np.argmax(units[candidates] @ units[index]))]
            counts[int(nearest)] += 1
    return np.array([counts[index] for index in kept.tolist()])
