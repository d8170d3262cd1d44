"""Rival rules behind one interface, written from their papers.

chosen = FIXED["el2n"](Task(model, images, labels, quotas, seed=0))
rule = DYNAMIC["rs2"](labels, quotas, seed=0)  # then rule.epoch(e, epochs), rule.saw(i, losses)
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.quality.baselines import cover, craig, gradmatch, random_draws, scores
from benchmarks.quality.baselines.dynamic import RS2, Dynamic, InfoBatch
from benchmarks.quality.baselines.task import Chosen, Task

__all__ = ["DYNAMIC", "FIXED", "RS2", "Chosen", "Dynamic", "InfoBatch", "Task"]

FIXED: dict[str, Callable[[Task], Chosen]] = {
    "random": random_draws.balanced,
    "random, global": random_draws.from_all,
    "el2n": scores.el2n,
    "grand": scores.grand,
    "forgetting": scores.forgetting,
    "margin": scores.margin,
    "k_center": cover.k_center,
    "feature herding": cover.feature_herding,
    "craig": craig.craig,
    "gradmatch": gradmatch.gradmatch,
    "ccs on el2n": scores.ccs_on_el2n,
}

DYNAMIC: dict[str, Callable[..., Dynamic]] = {"rs2": RS2, "infobatch": InfoBatch}
