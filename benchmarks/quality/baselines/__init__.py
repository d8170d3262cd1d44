"""Rival rules behind one interface, written from their papers.

chosen = FIXED["el2n"](Task(model, images, labels, quotas, seed=0))
rule = DYNAMIC["rs2"](labels, quotas, seed=0)  # then rule.epoch(e, epochs), rule.saw(i, losses)
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.quality.baselines import (
    cover,
    craig,
    gradmatch,
    random_draws,
    scores,
    trajectories,
)
from benchmarks.quality.baselines.dynamic import RS2, Dynamic, InfoBatch
from benchmarks.quality.baselines.task import Chosen, Task

__all__ = ["DYNAMIC", "FIXED", "RS2", "WATCHED", "Chosen", "Dynamic", "InfoBatch", "Task"]

_ONE_MODEL: dict[str, Callable[[Task], Chosen]] = {
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
    "ccs on aum": scores.ccs_on_aum,
    "highest label probability": scores.highest_probability,
    "lowest label probability": scores.lowest_probability,
    "moderate": cover.moderate,
    "dual": trajectories.dual,
    "small to large": trajectories.small_to_large,
}
# The same rules where more epochs of the warm-up are watched than the other rules get.
WATCHED = {f"{name}, 10 epochs": 10 for name in ("dual", "ccs on aum", "small to large")}
FIXED = _ONE_MODEL | {name: _ONE_MODEL[name.removesuffix(", 10 epochs")] for name in WATCHED}

DYNAMIC: dict[str, Callable[..., Dynamic]] = {"rs2": RS2, "infobatch": InfoBatch}
