"""What surrounds herding, in plain float64 NumPy: slow and small."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from reference import Floats, Ints, Trim, bandwidth, herd, trimmed, unit

Pick = Callable[[Floats, int], Ints]


def kernel(z: npt.ArrayLike) -> Floats:
    """K (n, n) of unit rows: exp(-|z_i - z_j|^2 / (2 tau^2))."""
    rows = unit(z)
    squared = np.array([((rows - row) ** 2).sum(axis=1) for row in rows])
    values: Floats = np.exp(-squared.reshape(len(rows), len(rows)) / (2 * bandwidth(z) ** 2))
    return values


def by_class(
    pick: Pick,
    z: npt.ArrayLike,
    margins: npt.ArrayLike,
    class_ids: Ints,
    quotas: Ints,
    trim: Trim = "negative",
) -> Ints:
    """Trim each class, then let `pick` choose its quota; one block per class."""
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


def weights(z: npt.ArrayLike, class_ids: Ints, left: Ints, kept: Ints) -> Floats:
    """How many of `left` each of `kept` stands for: of its class, nearest by direction, itself."""
    units, counts = unit(z), dict.fromkeys(kept.tolist(), 1.0)
    for index in np.setdiff1d(left, kept).tolist():
        candidates = kept[class_ids[kept] == class_ids[index]]
        if len(candidates):
            nearest = candidates[int(np.argmax(units[candidates] @ units[index]))]
            counts[int(nearest)] += 1
    return np.array([counts[index] for index in kept.tolist()])
