"""How many examples each kept one stands for, from what was kept of every example."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import sage_torch._core as _core
from sage_torch.rules.recut import Cut
from sage_torch.rules.whole import Agreement, Herding
from sage_torch.selection.result import Selection, behind


@behind("find_weights")
def find_weights(selection: Selection) -> Selection:
    """Do what `Selection.find_weights` documents."""
    settings = selection.settings
    if settings.get("rule") == "random":
        raise ValueError(
            'expected rule "herding" or "agreement", got rule="random": random examples stand for '
            "no neighbours; choose another rule"
        )
    if selection.draws is not None:
        raise ValueError(
            f'expected draw="fixed", got draw="{selection.draws.draw}": weights belong to one '
            'subset; select again with draw="fixed"'
        )
    cut = Cut.of(selection, {"consensus": "exact"})  # all coordinates are there
    _, rule, examples = cut.ready()
    assert isinstance(rule, (Agreement, Herding))
    scored = examples.scored(examples.rows.astype(np.float32))
    kept = np.searchsorted(cut.places, selection.indices)
    # A stream is trimmed block by block: a block's quota may need what the whole would drop.
    left = np.union1d(rule.untrimmed(scored), kept)
    weights = _core.weights(
        scored.coordinates,
        cut.classes.groups(),
        len(cut.quotas),
        left,
        kept,
        seed=cut.options.seed,
    )
    return replace(selection, weights=weights)
