"""The results of a comparison as one table, one sentence and one JSON object."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from scipy import stats  # type: ignore[import-untyped]

from sage_torch.demo.data import DemoData
from sage_torch.demo.training import FULL, METHODS, RANDOM, SAGE, Comparison, Run


def table(comparison: Comparison, data: DemoData) -> Table:
    """Return a table with one row per method: examples, steps, accuracy and seconds.

    Args:
        comparison: The measured runs.
        data: The data set, named in the title.
    """
    count = len(comparison.plan.seeds)
    seeds = "one seed" if count == 1 else f"{count} seeds"
    shown = Table(
        title=f"{data.name}: mean over {seeds}" + (" ± standard deviation" if count > 1 else ""),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption="The warm-up is one epoch on all data; the model it trains only selects.",
        caption_justify="left",
    )
    shown.add_column("method", no_wrap=True)
    headings = (
        "examples",
        "steps",
        "test\naccuracy, %",
        "warm-up and\nselection, s",
        "training, s",
    )
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for method in METHODS:
        runs = _runs(comparison, method)
        ahead = np.mean([run.warm_up_seconds + run.selection_seconds for run in runs])
        training = np.mean([run.training_seconds for run in runs])
        accuracy = accuracies(comparison, method)
        spread = f" ± {accuracy.std(ddof=1):.2f}" if count > 1 else ""
        shown.add_row(
            method,
            f"{runs[0].examples:,}",
            f"{runs[0].steps:,}",
            f"{accuracy.mean():.2f}{spread}",
            "-" if method == FULL else f"{ahead:.1f}",
            f"{training:.1f}",
        )
    return shown


def verdict(comparison: Comparison) -> str:
    """Return a sentence on the difference of SAGE to random, and on whether it may be luck."""
    found = difference(comparison)
    mean = f"SAGE - random: {found['mean']:+.2f} points"
    count = len(comparison.plan.seeds)
    if count == 1:
        return f"{mean} with one seed: give --seeds 3 or more to learn how much of that is luck."
    low, high = found["low"], found["high"]
    if low > 0:
        meaning = "SAGE chose the better subset"
    elif high < 0:
        meaning = "random chose the better subset"
    else:
        meaning = "these seeds do not tell the two apart"
    return (
        f"{mean}, paired standard error {found['standard_error']:.2f} over {count} seeds "
        f"(95 % interval {low:+.2f} to {high:+.2f}): {meaning}."
    )


def difference(comparison: Comparison) -> dict[str, Any]:
    """Return the accuracy of SAGE minus that of random, paired by seed, in points.

    Returns:
        `by_seed` and `mean`; with more than one seed also `standard_error`, and `low` and `high`,
        the 95 % interval of Student's t.
    """
    by_seed = accuracies(comparison, SAGE) - accuracies(comparison, RANDOM)
    mean, count = float(by_seed.mean()), len(by_seed)
    found: dict[str, Any] = {"by_seed": by_seed.tolist(), "mean": mean}
    if count > 1:
        error = float(by_seed.std(ddof=1)) / count**0.5
        reach = float(stats.t.ppf(0.975, count - 1)) * error
        found |= {"standard_error": error, "low": mean - reach, "high": mean + reach}
    return found


def as_json(comparison: Comparison, data: DemoData) -> dict[str, Any]:
    """Return every number of a comparison on `data`, and the settings to repeat it."""
    return {
        "data": {
            "name": data.name,
            "train_examples": len(data.train),
            "test_examples": len(data.test),
            "classes": data.classes,
        },
        "plan": asdict(comparison.plan),
        "runs": [asdict(run) for run in comparison.runs],
        "methods": {method: _summary(comparison, method) for method in METHODS},
        "sage_minus_random": difference(comparison),
        "verdict": verdict(comparison),
        "selections": [
            {
                "settings": selection.settings,
                "seconds": selection.seconds,
                "certificate": asdict(selection.certificate) if selection.certificate else None,
            }
            for selection in comparison.selections
        ],
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "system": platform.system(),
        },
    }


def accuracies(comparison: Comparison, method: str) -> NDArray[np.float64]:
    """Return the test accuracy of a method by seed, in percent."""
    return np.array([run.accuracy for run in _runs(comparison, method)])


def _summary(comparison: Comparison, method: str) -> dict[str, Any]:
    accuracy = accuracies(comparison, method)
    return {
        "accuracy_mean": float(accuracy.mean()),
        "accuracy_deviation": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else None,
        "examples": _runs(comparison, method)[0].examples,
    }


def _runs(comparison: Comparison, method: str) -> list[Run]:
    return [run for run in comparison.runs if run.method == method]
