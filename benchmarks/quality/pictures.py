"""Accuracy against seconds, a picture for every condition with several budgets."""

from __future__ import annotations

from typing import Any

from benchmarks.quality.runs import (
    BASELINE,
    SHOWN,
    groups,
    is_curve,
    load,
    picture,
    rules_of,
    title,
)
from benchmarks.record import RESULTS, Run
from sage_torch.plots import accuracy_against_time


def draw_pictures() -> None:
    """Draw what `quality.jsonl` holds."""
    for condition, runs in groups(load()):
        if is_curve(runs):
            _draw(condition, runs)


def _draw(condition: dict[str, Any], runs: list[Run]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = rules_of(runs)
    points = [
        {
            "method": SHOWN.get(run["rule"], run["rule"]).replace("*", "").replace("`", ""),
            "keep": run["keep"],
            "accuracy": run["accuracy"],
            "seconds": sum(run["seconds"].values()),
        }
        for run in sorted(runs, key=lambda run: order.index(run["rule"]))
    ]
    figure, ax = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    accuracy_against_time(points, ax, baseline=SHOWN[BASELINE])
    ax.set_xlabel("seconds of one CPU thread: warm-up, selection, training (log scale)")
    # Where a rule fails by tens of points, the others would be one line.
    lowest = min(run["accuracy"] for run in runs if run["rule"] == BASELINE) - 10
    is_cut = any(run["accuracy"] < lowest for run in runs)
    ax.set_ylim(bottom=lowest)
    ax.set_title(title(condition) + (" (lower points are cut off)" if is_cut else ""), fontsize=10)
    figure.savefig(RESULTS / picture(condition), dpi=110, metadata={"Software": None})
    pyplot.close(figure)
