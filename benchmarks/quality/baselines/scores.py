"""Rules that keep the examples of highest score of each class, and CCS over such a score."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.baselines.task import Chosen, Task, drawn_evenly, highest, joined
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
        ValueError: Nobody watched the warm-up.

    Reference:
        Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network
        Learning", ICLR 2019.
    """
    return highest(task, forgetting_scores(task))


def forgetting_scores(task: Task) -> NDArray[np.float64]:
    """Return how often each example went from right to wrong, infinity where never right, (N,)."""
    if task.seen is None:
        raise ValueError(
            "expected seen (epochs, N, C) for forgetting: note at each warm-up epoch the logits of "
            "the examples when they were trained on, and pass it to Task"
        )
    correct = task.watched.argmax(axis=2) == task.classes
    forgotten = (correct[:-1] & ~correct[1:]).sum(axis=0)
    return np.where(correct.any(axis=0), forgotten, np.inf)


def margin(task: Task) -> Chosen:
    """Keep the examples whose two most probable classes are nearest to each other.

    Reference:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning",
        ICLR 2020.
    """
    best = np.partition(task.probabilities, -2, axis=1)[:, -2:]
    return highest(task, best[:, 0] - best[:, 1])


def highest_probability(task: Task) -> Chosen:
    """Keep the examples whose label the model finds most probable: the easiest."""
    return highest(task, task.of_label(task.probabilities))


def lowest_probability(task: Task) -> Chosen:
    """Keep the examples whose label the model finds least probable: the hardest."""
    return highest(task, -task.of_label(task.probabilities))


def ccs_on_el2n(task: Task) -> Chosen:
    """Drop the hardest tenth of each class by EL2N, and draw evenly over strata of the rest.

    Reference:
        Zheng, Liu, Lai and Prakash, "Coverage-centric Coreset Selection for High Pruning Rates",
        ICLR 2023, Alg. 1.
    """
    return ccs(task, el2n_scores(task))


def ccs_on_aum(task: Task) -> Chosen:
    """Choose as CCS does, with the least area under the margin as the hardest.

    This is the score of the main results of CCS's paper, there averaged over a whole training.

    Reference:
        Zheng, Liu, Lai and Prakash, as above; Pleiss, Zhang, Elenberg and Weinberger, "Identifying
        Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020.
    """
    return ccs(task, -aum_scores(task))


def aum_scores(task: Task) -> NDArray[np.float64]:
    """Return the mean over the watched epochs of the label's logit less the largest other, (N,).

    One epoch cannot be averaged, and much of it was noted when the model had seen next to nothing:
    below two watched epochs it is the margin of the warmed-up model.
    """
    watched = task.watched if len(task.watched) > 1 else task.logits[None]
    others = watched.copy()
    others[:, np.arange(len(task.classes)), task.classes] = -np.inf
    return np.asarray((task.of_label(watched) - others.max(axis=2)).mean(axis=0))


def ccs(task: Task, hardness: NDArray[np.float64]) -> Chosen:
    """Drop the hardest tenth of each class (never below its quota), and draw evenly over strata.

    The strata of a class have equal width.

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
        left_over = shuffled[np.isin(shuffled, easiest)]
        strata = np.searchsorted(edges[1:-1], hardness[left_over], side="right")
        parts.append(drawn_evenly(left_over, strata, quota))
    return joined(parts)
