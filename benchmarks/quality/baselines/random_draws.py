"""Random subsets: what every rule has to beat."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.baselines.task import Chosen, Task, joined


def balanced(task: Task) -> Chosen:
    """Draw each class's quota at random, without replacement."""
    return joined(
        [
            members[task.permutation(len(members), label)[:quota]]
            for label, members, quota in task.members()
        ]
    )


def from_all(task: Task) -> Chosen:
    """Draw as many examples as the quotas sum to from all of them, whatever their classes."""
    budget = int(task.quotas.sum())
    return Chosen(np.sort(task.permutation(len(task.images))[:budget]))
