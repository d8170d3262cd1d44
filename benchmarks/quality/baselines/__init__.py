"""Rival rules behind one interface, written from their papers.

chosen = FIXED["el2n"](Task(model, images, labels, quotas, seed=0))
rule = DYNAMIC["rs2"](labels, quotas, seed=0)  # then rule.epoch(e, epochs), rule.saw(i, losses)
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.quality.baselines.cover import feature_herding, k_center
from benchmarks.quality.baselines.craig import craig
from benchmarks.quality.baselines.dynamic import RS2, Dynamic, InfoBatch
from benchmarks.quality.baselines.gradmatch import gradmatch
from benchmarks.quality.baselines.random_draws import balanced, from_all
from benchmarks.quality.baselines.scores import ccs_on_el2n, el2n, forgetting, grand, margin
from benchmarks.quality.baselines.task import Chosen, Task

__all__ = ["DYNAMIC", "FIXED", "RS2", "Chosen", "Dynamic", "InfoBatch", "Task"]

FIXED: dict[str, Callable[[Task], Chosen]] = {
    "random": balanced,
    "random, global": from_all,
    "el2n": el2n,
    "grand": grand,
    "forgetting": forgetting,
    "margin": margin,
    "k_center": k_center,
    "feature herding": feature_herding,
    "craig": craig,
    "gradmatch": gradmatch,
    "ccs on el2n": ccs_on_el2n,
}

DYNAMIC: dict[str, Callable[..., Dynamic]] = {"rs2": RS2, "infobatch": InfoBatch}
