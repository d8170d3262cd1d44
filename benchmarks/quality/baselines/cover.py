"""Rules that cover the features of each class (the inputs of the classifier), or their middle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.baselines.task import Chosen, Task, highest, joined


def k_center(task: Task) -> Chosen:
    """Keep examples such that, in each class, the one farthest from its nearest is near.

    Greedy: the example nearest to the mean of its class, then always the one farthest from all
    that are kept, which is within a factor of two of the best possible.

    Cost:
        O(n_c h) an example kept.

    Reference:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
        Approach", ICLR 2018, Alg. 1.
    """
    return joined(
        [
            members[farthest_first(task.features[members], quota)]
            for _, members, quota in task.members()
        ]
    )


def farthest_first(rows: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return `count` of the rows (n, h) in the order picked; ties by index."""
    centred = rows - rows.mean(axis=0)
    lengths = (centred**2).sum(axis=1)
    picks = np.empty(count, np.int64)
    picks[0] = np.argmin(lengths)
    nearest = np.full(len(rows), np.inf)  # squared distance to the nearest pick
    for place in range(count):
        if place:
            picks[place] = np.argmax(nearest)
        pick = picks[place]
        distances = lengths + lengths[pick] - 2 * (centred @ centred[pick])
        nearest = np.minimum(nearest, np.maximum(distances, 0))
        nearest[picks[: place + 1]] = -1  # also a copy of a pick comes before a pick again
    return picks


def feature_herding(task: Task) -> Chosen:
    """Keep examples whose mean feature stays next to that of their class, by linear herding.

    Features are scaled to unit length first: otherwise herding prefers long ones.

    Cost:
        O(n_c h) an example kept.

    Reference:
        Welling, "Herding Dynamical Weights to Learn", ICML 2009.
    """
    lengths = np.linalg.norm(task.features, axis=1, keepdims=True)
    units = task.features / np.where(lengths > 0, lengths, 1)
    return joined([members[herded(units[members], quota)] for _, members, quota in task.members()])


def herded(rows: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return `count` of the rows (n, h) in the order picked, each once; ties by index."""
    mean = rows.mean(axis=0)
    weight = mean.copy()
    is_left = np.ones(len(rows), bool)
    picks = np.empty(count, np.int64)
    for place in range(count):
        pick = picks[place] = np.argmax(np.where(is_left, rows @ weight, -np.inf))
        is_left[pick] = False
        weight += mean - rows[pick]
    return picks


def moderate(task: Task) -> Chosen:
    """Keep examples that are neither near to nor far from the centre of their class.

    The centre is the mean feature of the class. Those stay whose distance to it is nearest to the
    median distance of the class.

    Reference:
        Xia, Liu, Yu, Shen, Han and Liu, "Moderate Coreset: A Universal Method of Data Selection for
        Real-world Data-efficient Deep Learning", ICLR 2023.
    """
    nearness = np.empty(len(task.classes))
    for _, members, _ in task.members():
        features = task.features[members]
        distances = np.linalg.norm(features - features.mean(axis=0), axis=1)
        nearness[members] = -np.abs(distances - np.median(distances))
    return highest(task, nearness)
