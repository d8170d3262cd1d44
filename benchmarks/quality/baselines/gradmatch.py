"""GradMatch: a weighted subset whose gradient is that of all examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.baselines.task import Chosen, Task, weighted

RIDGE = 0.5
"""Weight of `|w|^2`, in units of the mean squared length of a gradient."""


def gradmatch(task: Task) -> Chosen:
    """Keep examples whose weighted gradients sum to that of their class, by matching pursuit.

    The paper's per-class form: of the classifier's gradient only the row of the class itself,
    `(p_c - 1) [h, 1]`, is matched. Where pursuit ends before the quota is met, since no further
    example with a weight above 0 comes nearer, the rest is drawn at random with the mean weight.

    Cost:
        O(n_c h) multiplications an example kept.

    Reference:
        Killamsetty et al., "GRAD-MATCH: Gradient Matching based Data Subset Selection for
        Efficient Deep Model Training", ICML 2021, Alg. 2.
    """
    parts, weights = [], []
    for label, members, quota in task.members():
        inputs = np.hstack([task.features[members], np.ones((len(members), 1))])
        rows = task.errors[members, label, None] * inputs
        scale = np.sqrt((rows**2).sum(axis=1).mean())
        if scale > 0:
            rows /= scale
        found = matching_pursuit(rows, rows.sum(axis=0), quota)
        picked = np.flatnonzero(found)
        order = task.permutation(len(members), label)
        rest = order[found[order] == 0][: quota - len(picked)]
        mean = found[picked].mean() if len(picked) else 1.0
        parts.append(members[np.concatenate([picked, rest])])
        weights.append(np.concatenate([found[picked], np.full(len(rest), mean)]))
    return weighted(parts, weights)


def matching_pursuit(
    rows: NDArray[np.float64], target: NDArray[np.float64], count: int, ridge: float = RIDGE
) -> NDArray[np.float64]:
    """Minimise `|target - w rows|^2 + ridge |w|^2` greedily, w >= 0, at most `count` of them above.

    Orthogonal matching pursuit: the row that points most along the residual comes in, and all
    weights are fitted again. Weights that would turn negative leave on the way, as in the
    non-negative least squares of Lawson and Hanson (1974), of which this is a prefix: the
    objective falls at every step.

    With `M = ridge I + sum of g g^T` over the rows chosen, the best weights without the sign are
    `<g_i, M^-1 target>` and the residual is `ridge M^-1 target`. So one d x d inverse, updated by
    rank one, serves for everything: cheaper than a Cholesky factor of the Gram matrix, which
    grows with the subset.

    Args:
        rows: float64 (n, d).
        target: float64 (d,).
        count: Most weights above 0.
        ridge: Above 0.

    Returns:
        Weights, float64 (n,), 0 for what was not chosen.
    """
    weights = np.zeros(len(rows))
    chosen = np.zeros(len(rows), bool)
    inverse = np.eye(rows.shape[1]) / ridge
    least = 1e-10 * float(np.abs(rows @ target).max(initial=0)) / ridge

    def exchange(row: int, sign: int) -> None:
        """Bring a row in (sign 1) or out (-1), by Sherman and Morrison's formula."""
        image = inverse @ rows[row]
        inverse[:] -= np.outer(image, image) * (sign / (1 + sign * (rows[row] @ image)))
        chosen[row] = sign > 0

    for _ in range(3 * len(rows)):  # as often as the original allows; it ends sooner
        if chosen.sum() >= count:
            break
        fitted = rows @ (inverse @ target)
        best = int(np.argmax(np.where(chosen, -np.inf, fitted)))
        if chosen[best] or fitted[best] <= least:
            break
        exchange(best, 1)
        while True:
            fitted = np.where(chosen, rows @ (inverse @ target), 0)
            falling = np.flatnonzero(fitted < 0)
            if not len(falling):
                break
            # Go from the old weights towards the fitted ones until the first reaches 0.
            steps = weights[falling] / (weights[falling] - fitted[falling])
            first = falling[np.argmin(steps)]
            weights += steps.min() * (fitted - weights)
            weights[first] = 0
            exchange(int(first), -1)
        weights = fitted
    return weights
