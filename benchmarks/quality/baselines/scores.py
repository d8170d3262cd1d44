"""Rules that keep the examples of highest score of each class, and strata over such a score."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.baselines.task import Chosen, Task, highest, joined
from sage_torch.gradients import choose_gradients, rows_of

STRATA = 50
HARDEST_DROPPED = 0.1


def el2n(task: Task) -> Chosen:
    """Keep the examples of longest error vector `p - y`.

    The paper averages the score over ten networks; here there is the one that is warmed up.

    Reference:
        Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021.
    """
    return highest(task, el2n_scores(task))


def el2n_scores(task: Task) -> NDArray[np.float64]:
    """Return `||p_i - y_i||`, float64 (N,)."""
    return np.asarray(np.linalg.norm(task.errors, axis=1))


def grand(task: Task) -> Chosen:
    """Keep the examples of longest gradient of the cross-entropy, over the whole network.

    Cost:
        About a training step an example. Gradients of more than 8,192 numbers are projected, which
        changes their lengths by some per cent, and hardly their order.

    Reference:
        Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021.
    """
    return highest(task, grand_scores(task))


def grand_scores(task: Task) -> NDArray[np.float64]:
    """Return `||g_i||`, float64 (N,)."""
    gradients = choose_gradients(task.model, seed=task.seed)
    norms = [rows_of(gradients, batch).norm(dim=1).cpu() for batch in task.batches()]
    return torch.cat(norms).double().numpy()


def forgetting(task: Task) -> Chosen:
    """Keep the examples that were forgotten most often; those never learnt count as most.

    Raises:
        ValueError: The task does not say what was correct.

    Reference:
        Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network
        Learning", ICLR 2019.
    """
    return highest(task, forgetting_scores(task))


def forgetting_scores(task: Task) -> NDArray[np.float64]:
    """Return how often each example went from right to wrong, infinity where never right, (N,)."""
    if task.correct is None:
        raise ValueError(
            "expected correct (epochs, N) for forgetting: note at each warm-up epoch which "
            "examples were classified correctly when they were trained on, and pass it to Task"
        )
    forgotten = (task.correct[:-1] & ~task.correct[1:]).sum(axis=0)
    return np.where(task.correct.any(axis=0), forgotten, np.inf)


def margin(task: Task) -> Chosen:
    """Keep the examples whose two most probable classes are nearest to each other.

    Reference:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning",
        ICLR 2020.
    """
    best = np.partition(task.probabilities, -2, axis=1)[:, -2:]
    return highest(task, best[:, 0] - best[:, 1])


def ccs_on_el2n(task: Task) -> Chosen:
    """Drop the hardest tenth of each class by EL2N, and draw evenly over strata of the rest.

    Reference:
        Zheng, Liu, Lai and Prakash, "Coverage-centric Coreset Selection for High Pruning Rates",
        ICLR 2023, Alg. 1.
    """
    return ccs(task, el2n_scores(task))


def ccs(task: Task, hardness: NDArray[np.float64]) -> Chosen:
    """Drop the hardest tenth of each class (never below its quota), and draw evenly over strata.

    The strata of a class have equal width. From the smallest up, each gives an even share of what
    is still to be kept, or all that it has.

    Args:
        task: The task.
        hardness: float64 (N,).
    """
    parts = []
    for label, members, quota in task.members():
        left = max(quota, len(members) - int(HARDEST_DROPPED * len(members)))
        shuffled = members[task.permutation(len(members), label)]
        easiest = shuffled[np.argsort(hardness[shuffled], kind="stable")[:left]]
        values = hardness[np.sort(easiest)]
        edges = np.linspace(values.min(), values.max(), STRATA + 1)
        # The inner edges alone: the hardest example belongs to the last stratum.
        strata = np.searchsorted(edges[1:-1], hardness[shuffled], side="right")
        strata[~np.isin(shuffled, easiest)] = STRATA
        sizes = np.bincount(strata, minlength=STRATA + 1)[:STRATA]
        for taken, stratum in enumerate(np.argsort(sizes, kind="stable")):
            share = min(quota // (STRATA - taken), int(sizes[stratum]))
            parts.append(shuffled[strata == stratum][:share])  # in shuffled order: a random draw
            quota -= share
    return joined(parts)
