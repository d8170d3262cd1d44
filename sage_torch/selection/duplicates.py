"""Near duplicates: examples that are much nearer to each other than to the rest of their class.

No cosine means the same everywhere: two shirts are nearer to each other than two ships. So a pair
is judged by what lies around it. Coordinates are whitened, rows are
brought to length 1, and the neighbours of an example are its near duplicates if there is a gap
behind them: the next but one is much farther away. That is the ratio test by which features of
pictures are matched (Lowe, section 7.1), for several matches at once and from both sides. How wide
the gap must be follows from the data: where examples lie evenly in m dimensions, the chance of a
gap is known (Levina and Bickel give m), and so is how many pairs would be found by mistake
(Benjamini and Hochberg). Clusters do not chain: a member is a near duplicate of the representative
itself.

Which coordinates: of 1,000 planted near duplicates among 20,000 images, the share found at a
precision of 0.9 within classes, by a small network after one epoch, each with its own best cut:

    compared                                          CIFAR-10    Fashion-MNIST
    gradients, cosine                                     0.53             0.01
    gradients beside features, cosine                     0.70             0.18
    features, cosine                                      0.71             0.30
    gradients beside features, whitened, cosine           0.84             0.55
    features, whitened, cosine                            0.84             0.53
    features, gap                                         0.94             0.58
    gradients, whitened, gap                              0.77             0.46
    gradients beside features, whitened, gap              0.97             0.60
    features, whitened, gap                               0.98             0.61

So pass the features alone where there are any. Gradients of well-learnt examples are mostly noise,
and theirs do not lie evenly: the share of mistakes is then not kept.
`benchmarks/quality/duplicates.py` has what the defaults give. No cut finds what the model sees as a
large change: on Fashion-MNIST, a shift by one pixel moves an image farther than to others of its
class. On seeds 200 and 201 image and copy are each other's nearest neighbours in 0.73 of the pairs
there (0.75 with each class whitened alone, 0.57 to 0.63 by gradients or logits), and in 0.78 from
one side. A classifier that learnt from planted pairs what distances, gaps, ranks and densities in
all of these coordinates say found 0.62 at a precision of 0.9. So does the gap alone with its best
cut, and so it does where the pixels themselves are compared.

Reference:
    Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 2004. Levina and Bickel,
    "Maximum Likelihood Estimation of Intrinsic Dimension", NeurIPS 2004. Benjamini and Hochberg,
    "Controlling the False Discovery Rate", JRSS B 1995.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sage_torch.selection.neighbours import NEIGHBOURS, distances_of, nearest

Rows = NDArray[np.float16] | NDArray[np.float32]

MISTAKEN = 0.05  # chosen on planted duplicates, as is the next
WIDEST = 0.6  # no pair is taken for near duplicates whose gap is smaller
_BEHIND = 2  # the gap ends at the next neighbour but one
_UNRELATED = 1.0  # distance of rows of length 1: no neighbour counts as farther
_SAME = 0.01  # distance of rows that differ by rounding
_FLOOR = 1e-3  # of the largest variance, added to each: the shortest axes are mostly noise
_DIMENSION = 4.0  # where there are too few examples to tell
_BLOCK = 65_536  # rows in float64 at once


class _Group(NamedTuple):
    members: NDArray[np.int64]  # (n,)
    neighbours: NDArray[np.int32]  # (n, k) places within the group, the nearest first
    distances: NDArray[np.float32]  # (n, k)


def near_duplicates(
    coordinates: Rows,
    groups: NDArray[np.integer[Any]] | None = None,
    label_scores: NDArray[np.floating[Any]] | None = None,
    *,
    mistaken: float = MISTAKEN,
) -> NDArray[np.int64]:
    """Return for each example whose near duplicate it is.

    The rows of each cluster but one name that one, its representative: the member with the highest
    label score, of equals the first. Leaving out all examples with an entry of at least 0 leaves
    one of each cluster. An entry never names an example that has one itself.

    Args:
        coordinates: float16 or float32 (N, w), finite; the features where there are any.
        groups: Integers (N,), the classes: only examples of the same one can be near duplicates.
            None: any can.
        label_scores: (N,), how likely each label is; NaN counts as lowest. None: all are equal.
        mistaken: Which share of the pairs found may be mistaken, in (0, 1). The estimate holds for
            examples that lie evenly; clusters that are natural come on top.

    Returns:
        int64 (N,): the representative, or -1 for examples without near duplicates and for
        representatives. The same whatever the number of threads.

    Raises:
        ValueError: Shapes do not fit, coordinates are not finite, `mistaken` is out of range.
        TypeError: Coordinates are neither float16 nor float32, or groups are no integers.
        ImportError: A group has 20,000 rows or more, and faiss is missing.

    Cost:
        2 N w^2 operations, and n^2 w for a group of n rows below 20,000 (more: see `nearest`).
        Memory: 2 w bytes per example for whitened rows, as much again for those of the largest
        group, and 128 for neighbours. Of a cluster with more than 14 members only those are found
        that differ by rounding; the same holds where most examples have four near duplicates.

    Example:
        >>> import numpy as np
        >>> from sage_torch.selection.duplicates import near_duplicates
        >>> rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
        >>> rows[7] = rows[3] * 1.001
        >>> np.flatnonzero(near_duplicates(rows) >= 0), near_duplicates(rows)[7]
        (array([7]), np.int64(3))
    """
    _check(coordinates, groups, label_scores, mistaken)
    total = len(coordinates)
    scores = np.zeros(total) if label_scores is None else label_scores
    duplicate_of = np.full(total, -1, np.int64)
    rows = _whitened(coordinates)
    found = [_Group(members, *nearest(rows[members])) for members in _members(groups, total)]
    threshold = _threshold(found, mistaken)
    for members, neighbours, distances in found:
        reach = _reach(distances, threshold)
        first, place = np.nonzero(distances <= np.minimum(reach[:, None], reach[neighbours]))
        clusters = _components(len(members), first, neighbours[first, place])
        joined = _joined(rows[members], clusters, reach, scores[members])
        is_joined = joined >= 0
        duplicate_of[members[is_joined]] = members[joined[is_joined]]
    return duplicate_of


def _check(coordinates: Any, groups: Any, label_scores: Any, mistaken: float) -> None:
    if coordinates.dtype not in (np.float16, np.float32):
        raise TypeError(f"expected coordinates of float16 or float32, got {coordinates.dtype}")
    if coordinates.ndim != 2 or coordinates.shape[1] == 0:
        raise ValueError(f"expected coordinates of shape (N, w), got {coordinates.shape}")
    for name, array in (("groups", groups), ("label_scores", label_scores)):
        if array is not None and array.shape != (len(coordinates),):
            raise ValueError(
                f"expected {name} of shape ({len(coordinates)},), one per row of coordinates, got "
                f"{array.shape}"
            )
    if groups is not None and groups.dtype.kind not in "iu":
        raise TypeError(f"expected groups of integers, got {groups.dtype}")
    if not 0 < mistaken < 1:
        raise ValueError(f"expected mistaken to be a share in (0, 1), got {mistaken!r}")


def _members(groups: NDArray[np.integer[Any]] | None, total: int) -> list[NDArray[np.int64]]:
    """Return the rows of each group that has at least two, ascending."""
    if groups is None:
        parts = [np.arange(total)]
    else:
        order = np.argsort(groups, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return [part for part in parts if len(part) > 1]


def _whitened(coordinates: Rows) -> NDArray[np.float16]:
    """Return rows (N, w) without the mean, of equal variance in all long axes, at length 1 or 0."""
    total, width = coordinates.shape
    rows = np.empty((total, width), np.float16)
    if total == 0:
        return rows
    sums, moments = np.zeros(width), np.zeros((width, width))
    for start in range(0, total, _BLOCK):
        block = coordinates[start : start + _BLOCK].astype(np.float64)
        sums += block.sum(0)
        moments += block.T @ block
    if not np.isfinite(moments).all():
        raise ValueError("expected finite coordinates, got NaN or infinity; look at the model")
    mean = sums / total
    variances, axes = np.linalg.eigh(moments / total - np.outer(mean, mean))
    floor = max(_FLOOR * variances[-1], 1e-12 * moments.trace() / total, 1e-300)
    # A symmetric matrix, so that neither the signs of axes nor the order of equal ones matter.
    whiten = (axes / np.sqrt(np.maximum(variances, 0.0) + floor)) @ axes.T
    for start in range(0, total, _BLOCK):
        block = (coordinates[start : start + _BLOCK].astype(np.float64) - mean) @ whiten
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        is_long = norms > 1e-4  # rows at the mean have no direction
        rows[start : start + _BLOCK] = np.where(is_long, block / np.where(is_long, norms, 1.0), 0.0)
    return rows


def _behind(near: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far the next neighbour but one of each is, (n, k); 0 where that is not known."""
    is_whole_group = near.shape[1] < NEIGHBOURS
    behind = np.full_like(near, _UNRELATED if is_whole_group else 0.0)
    behind[:, :-_BEHIND] = np.minimum(near[:, _BEHIND:], _UNRELATED)
    return behind


def _reach(near: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Return how far near duplicates of each example may be (n,): to the last with a gap behind."""
    has_gap = near <= threshold * _behind(near)
    reach: NDArray[np.float32] = np.where(has_gap, near, np.float32(_SAME)).max(1, initial=_SAME)
    return reach


def _threshold(found: list[_Group], mistaken: float) -> float:
    """Return the largest ratio by which no more than that share of pairs is found by mistake.

    Where examples lie evenly in m dimensions, the m-th power of the ratio of the distances of the
    nearest and the third neighbour is the lower of two uniform numbers: it falls below t^m with
    probability 1 - (1 - t^m)^2. Each pair has two examples.
    """
    total = sum(len(group.members) for group in found)
    ratios = np.sort(np.concatenate([np.empty(0), *(_ratios_of_pairs(group) for group in found)]))
    power = np.minimum(ratios, 1.0) ** _dimension(found)
    expected = 0.5 * total * (1 - (1 - power) ** 2)
    is_allowed = (expected <= mistaken * np.arange(1, len(ratios) + 1)) & (ratios <= WIDEST)
    return float(ratios[is_allowed].max(initial=0.0)) * (1 + 1e-6)  # above its own rounding


def _ratios_of_pairs(group: _Group) -> NDArray[np.float32]:
    """Return the larger ratio of each two examples that are each other's nearest neighbours."""
    near, own = group.distances, np.arange(len(group.members))
    ratio = near[:, 0] / np.maximum(_behind(near)[:, 0], 1e-6)
    other = group.neighbours[:, 0]
    is_first = (other[other] == own) & (own < other)
    larger: NDArray[np.float32] = np.maximum(ratio, ratio[other])[is_first]
    return larger


def _dimension(found: list[_Group]) -> float:
    """Return in how many dimensions examples lie, from the fourth neighbours and the last.

    The m-th power of the ratio of their distances has a beta distribution (4, k - 4). Nearer ones
    may be duplicates.
    """
    ratios = []
    for near in (one.distances for one in found if one.distances.shape[1] == NEIGHBOURS):
        is_known = (near[:, 3] > _SAME) & np.isfinite(near[:, -1])
        ratios.append(near[is_known, 3] / near[is_known, -1])
    known = np.concatenate([*ratios, np.empty(0)])
    if len(known) == 0:
        return _DIMENSION
    median_of_beta = (4 - 1 / 3) / (NEIGHBOURS - 2 / 3)
    return float(np.log(median_of_beta) / np.log(min(np.median(known), 1 - 1e-6)))


def _components(
    total: int, first: NDArray[np.int64], second: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Return for each of so many places the lowest that pairs lead to."""
    lowest = np.arange(total)
    while True:
        new = lowest.copy()
        np.minimum.at(new, first, lowest[second])
        np.minimum.at(new, second, lowest[first])
        new = new[new]
        if np.array_equal(new, lowest):
            return lowest
        lowest = new


def _joined(
    rows: NDArray[np.float16],
    clusters: NDArray[np.int64],
    reach: NDArray[np.float32],
    scores: NDArray[np.floating[Any]],
) -> NDArray[np.int64]:
    """Return the representative of each place, or -1; what does not reach it is tried again."""
    joined = np.full(len(rows), -1, np.int64)
    is_shared = np.bincount(clusters, minlength=len(rows))[clusters] > 1
    members = np.flatnonzero(is_shared)
    members = members[np.lexsort((-scores[members], clusters[members]))]  # stable
    for left in np.split(members, np.flatnonzero(np.diff(clusters[members])) + 1):
        while len(left) > 1:
            best, left = left[0], left[1:]
            gaps = distances_of(rows, left[None, :], best[None])[0]
            is_near = gaps <= np.minimum(reach[left], reach[best])
            joined[left[is_near]] = best
            left = left[~is_near]
    return joined
