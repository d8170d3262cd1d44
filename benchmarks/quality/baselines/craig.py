"""CRAIG: a weighted subset whose gradients stand near to those of all examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from benchmarks.quality.baselines.task import Chosen, Task, weighted

LARGEST_BLOCK = 2048


def craig(task: Task) -> Chosen:
    """Keep, by greedy facility location, examples that are near to all of their class.

    Distances are those of the gradients with respect to the logits, `p - y`, which bound those of
    the network's gradients. A weight says how many examples are nearest to the one kept. Classes
    above 2,048 examples are cut into seeded blocks, each with its part of the quota.

    Cost:
        O(n^2) numbers and about O(n^2 log n) operations a block of n.

    Reference:
        Mirzasoleiman, Bilmes and Leskovec, "Coresets for Data-efficient Training of Machine
        Learning Models", ICML 2020.
    """
    parts, weights = [], []
    for label, members, quota in task.members():
        shuffled = members[task.permutation(len(members), label)]
        blocks = np.array_split(shuffled, -(-len(members) // LARGEST_BLOCK))
        sizes = np.array([len(block) for block in blocks], np.int64)
        kept, counts = [], []
        for block, share in zip(blocks, _core.class_quotas(sizes, quota), strict=True):
            block = np.sort(block)
            distances = pairwise_distances(task.errors[block])
            picked = facility_location(distances, int(share))
            nearest = np.argmin(distances[:, picked], axis=1) if len(picked) else picked
            kept.append(block[picked])
            counts.append(np.bincount(nearest, minlength=len(picked)).astype(np.float64))
        parts.append(np.concatenate(kept))
        weights.append(np.concatenate(counts))
    return weighted(parts, weights)


def pairwise_distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Euclidean distances (n, n) of rows (n, d), 0 on the diagonal."""
    squares = (rows**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    np.fill_diagonal(distances, 0)
    return np.asarray(np.sqrt(np.maximum(distances, 0)))


def facility_location(distances: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Pick greedily what lowers the sum of distances to the nearest pick most.

    Before the first pick every example is as far away as any two are. Gains are kept for all
    candidates: a pick changes them only through the examples that it is nearer to, and those
    become few soon, so this costs no more than evaluating lazily. Distances are rounded to whole
    numbers below 2^30, so that sums are exact: two examples nearest to each other often gain the
    same, and then the lower index is to be picked, whatever the order of summation.

    Args:
        distances: float64 (n, n), symmetric, 0 on the diagonal.
        count: How many to pick, at most n.

    Returns:
        int64 (count,), in the order picked; ties by index.
    """
    distances = np.rint(distances * (2**30 / (distances.max() or 1)))
    nearest = np.full(len(distances), distances.max())
    gains = (nearest[:, None] - distances).sum(axis=0)
    picks = np.empty(count, np.int64)
    for place in range(count):
        pick = picks[place] = np.argmax(gains)
        changed = np.flatnonzero(distances[:, pick] < nearest)
        before, after = nearest[changed, None], distances[changed, pick, None]
        rows = distances[changed]
        gains -= (np.maximum(before - rows, 0) - np.maximum(after - rows, 0)).sum(axis=0)
        gains[pick] = -np.inf
        nearest[changed] = after[:, 0]
    return picks
