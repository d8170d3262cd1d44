"""Rules that read how the model's word on each example changed while it was warmed up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from benchmarks.quality.baselines.task import Chosen, Task, drawn_evenly, joined, softmax

WINDOW = 10  # epochs
# Of DUAL's Beta distribution: its two parameters sum to CONCENTRATION + 1, and POWER is the paper's
# for CIFAR-10 (4 for CIFAR-100, 11 for ImageNet: the harder the data, the larger).
CONCENTRATION, POWER = 15, 5.5
ANCHORS = 10  # examples of highest score, whose mean probability is where the Beta moves to
CLUSTERS, OUTLIERS = 100, 2  # of a class; clusters of so few come last


def dual(task: Task) -> Chosen:
    """Draw examples that are hard and uncertain, the easier the fewer are kept.

    The score is the mean over windows of ten watched epochs of `(1 - mean) * deviation` of the
    label's probability. Draws are without replacement, with weights `score * Beta(mean)`. The Beta
    density peaks at probability 1 where next to nothing is kept, and moves to the probability of
    the examples of highest score as more is kept.

    Fewer epochs than a window are one window. One watched epoch gives no deviation, so the
    probability after the warm-up counts as a second look. For a model that was not trained there is
    one look, and the deviation is left out.

    Reference:
        Cho, Shin, Kang and Yun, "Lightweight Dataset Pruning without Full Training via Example
        Difficulty and Prediction Uncertainty", arXiv 2502.06905, 2025. The authors watch 30 epochs
        on CIFAR and draw from all classes at once; here each class has its quota.
    """
    looks = _looks(task)
    scores = dual_scores(looks)
    mean = looks.mean(axis=0)
    pruned = 1 - task.quotas.sum() / len(mean)
    anchor = mean[np.argsort(-scores, kind="stable")[:ANCHORS]].mean()
    second = CONCENTRATION * (1 - anchor) * (1 - pruned**POWER)
    first = CONCENTRATION + 1 - second
    inside = mean.clip(1e-12, 1 - 1e-12)
    with np.errstate(divide="ignore"):
        weights = (first - 1) * np.log(inside) + (second - 1) * np.log1p(-inside) + np.log(scores)
    parts = []
    for label, members, quota in task.members():
        # The first arrivals at these rates are a draw without replacement. Where too few have a
        # weight above 0, the others arrive after them, in random order.
        waits = np.random.default_rng((task.seed, label)).exponential(size=len(members))
        order = np.lexsort((waits, np.log(waits) - weights[members]))
        parts.append(members[order[:quota]])
    return joined(parts)


def dual_scores(looks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `(1 - mean) * deviation`, mean over windows, of probabilities (epochs, N)."""
    if len(looks) < 2:
        return np.asarray(1 - looks.mean(axis=0))
    length = min(WINDOW, len(looks))
    windows = np.lib.stride_tricks.sliding_window_view(looks, length, axis=0)
    return np.asarray(((1 - windows.mean(axis=-1)) * windows.std(axis=-1)).mean(axis=0))


def _looks(task: Task) -> NDArray[np.float64]:
    """Return the label's probabilities that DUAL reads (looks, N)."""
    watched = task.of_label(softmax(task.watched))
    if len(watched) > 1:
        return watched
    return np.concatenate([watched, task.of_label(task.probabilities)[None]])


def small_to_large(task: Task) -> Chosen:
    """Cluster each class by its losses over the watched epochs, and draw evenly from the clusters.

    The paper clusters each source of its data for language models; a class is a source here. It
    reads a small model's losses at many checkpoints. Here the losses are those of the network that
    is warmed up, noted as it trained. Below two watched epochs they are those of the warmed-up
    model, one number an example, so that the clusters are intervals of the loss.

    Clusters of one or two examples are outliers and are drawn from last.

    Cost:
        k-means with 100 clusters in each class.

    Reference:
        Yang, Mishra, Chiang and Mirzasoleiman, "SmallToLarge (S2L): Scalable Data Selection for
        Fine-tuning Large Language Models by Summarizing Training Trajectories of Small Models",
        NeurIPS 2024, Alg. 1.
    """
    logits = task.watched if len(task.watched) > 1 else task.logits[None]
    losses = -np.log(task.of_label(softmax(logits)).clip(1e-30)).T
    parts = []
    for label, members, quota in task.members():
        shuffled = members[task.permutation(len(members), label)]
        clusters = clusters_of(losses[shuffled], task.seed)
        is_outlier = (np.bincount(clusters) <= OUTLIERS)[clusters]
        inner, outer = shuffled[~is_outlier], shuffled[is_outlier]
        from_inner = min(quota, len(inner))
        if from_inner:
            parts.append(drawn_evenly(inner, clusters[~is_outlier], from_inner))
        parts.append(outer[: quota - from_inner])
    return joined(parts)


def clusters_of(rows: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return the cluster (n,) of each row, by k-means; no more clusters than different rows."""
    count = min(CLUSTERS, len(np.unique(rows, axis=0)))
    found = KMeans(count, n_init=1, max_iter=30, random_state=seed).fit_predict(rows)
    return np.asarray(found, np.int64)
