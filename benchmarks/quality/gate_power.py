"""What does the accuracy gate notice?

The gate is `tests/quality/test_accuracy.py`. Real runs with seeds that it does not use give the
gain of the selection over class-balanced random, whose mean, less a tenth and rounded down, it
expects, and a pool of paired differences. From that pool, as many as the gate has seeds are drawn
again and again, and the gate's own test judges them:

- as they are: the share noticed is the gate's rate of false alarms;
- less one point each: the share noticed is its power against that loss of what was measured, which
  the rounding makes a little lower than against a loss of what is expected.

    python -m benchmarks.quality.gate_power
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch.utils.data import Subset

from benchmarks.record import PROJECT, RESULTS, environment, write

sys.path.append(str(PROJECT / "tests"))
from accuracy_gate import CELLS, CONFIDENCE, TRAINING, Cell, Digits, train, warm_up

from sage_torch import select_subset
from sage_torch.option_types import SelectionOptions
from sage_torch.testing import Comparison


@dataclass(frozen=True)
class Run:
    """Test accuracies of one seed, in percent, and how many examples the trim dropped."""

    random: float
    ours: float
    trimmed: int


def main(
    seeds: Annotated[int, typer.Option(help="How many, from 0; the gate's begin at 1,000.")] = 100,
    draws: Annotated[int, typer.Option(help="Simulated gates of each kind.")] = 2_000,
) -> None:
    """Measure every cell and write the numbers down."""
    torch.set_num_threads(1)
    if seeds > min(cell.seeds.start for cell in CELLS):
        raise typer.BadParameter("expected seeds that the gate does not use")
    save([list(measured(cell, range(seeds))) for cell in CELLS], draws)


def measured(cell: Cell, seeds: Iterable[int]) -> Iterable[Run]:
    """Train on a random subset and on ours with each seed, as the gate does."""
    digits = Digits(cell.flipped)
    rules: list[SelectionOptions] = [{"rule": "random"}, cell.options]
    for seed in seeds:
        selector = warm_up(digits.train, seed)
        random, ours = (
            select_subset(selector, digits.train, cell.keep, seed=seed, progress=False, **options)
            for options in rules
        )
        accuracies = (
            digits.evaluate(train(Subset(digits.train, chosen.indices.tolist()), seed))
            for chosen in (random, ours)
        )
        yield Run(*accuracies, trimmed=ours.settings["trimmed"])


def save(runs: list[list[Run]], draws: int) -> None:
    """Write down the runs of all cells, seeds from 0 on, and what the gate makes of them."""
    settings = {
        "seeds": len(runs[0]),
        "draws": draws,
        "confidence": CONFIDENCE,
        "training": TRAINING,
    }
    results = [judged(cell, of_cell, draws) for cell, of_cell in zip(CELLS, runs, strict=True)]
    where = environment("scikit-learn", "scipy")
    question = "What does the accuracy gate notice?"
    write(RESULTS / "gate_power.json", question, where, settings=settings, results=results)


def judged(cell: Cell, runs: list[Run], draws: int) -> dict[str, Any]:
    """Return the gain of these runs, and what the gate would have noticed."""
    random, ours = (np.array([getattr(run, name) for run in runs]) for name in ("random", "ours"))
    gain = ours - random
    found = spread(gain)
    expected = expected_gain(found["mean"])
    noticed = {
        "one point lost": share_noticed(cell, gain - 1, expected, draws),
        "nothing lost": share_noticed(cell, gain, expected, draws),
    }
    trimmed = sum(run.trimmed for run in runs) / len(runs)
    typer.echo(
        f"{cell.name}: {len(cell.seeds)} seeds, {found['mean']:+.2f} ± {found['deviation']:.2f} "
        f"over random, {expected:+g} expected, {trimmed:.1f} trimmed"
    )
    for name, share in noticed.items():
        typer.echo(f"  noticed, {name}: {share:.3f}")
    return {
        "cell": cell.name,
        "options": cell.options,
        "gate_seeds": [cell.seeds.start, cell.seeds.stop],
        "expected_gain": expected,
        "gain_over_random": found,
        "share_noticed": noticed,
        "mean_trimmed": trimmed,
        "accuracy": {"random": random.round(3).tolist(), "ours": ours.round(3).tolist()},
    }


def expected_gain(mean: float) -> float:
    """Return what the gate asks for: a tenth below the measured mean, rounded down to a tenth.

    The gate's own seeds are a draw, too, and so are the accuracies of another processor: without
    that tenth the gate would fail for no loss at all too often.
    """
    return math.floor(10 * mean - 1) / 10


def share_noticed(
    cell: Cell, differences: NDArray[np.float64], expected: float, draws: int
) -> float:
    """Return how often the gate's test fails on differences drawn from these."""
    random = np.random.default_rng(0)
    count = len(cell.seeds)
    noticed = 0
    for _ in range(draws):
        drawn = random.choice(differences, count)
        comparison = Comparison(
            seeds=tuple(cell.seeds),
            sage=drawn,
            baseline=np.zeros(count),
            against="random",
            examples=(0, 0, 0),
            gain=expected,
            confidence=CONFIDENCE,
        )
        noticed += comparison.is_below
    return noticed / draws


def spread(values: NDArray[np.float64]) -> dict[str, float]:
    """Return mean, its standard error, and the standard deviation over seeds."""
    deviation = float(values.std(ddof=1))
    return {
        "mean": float(values.mean()),
        "standard_error": deviation / len(values) ** 0.5,
        "deviation": deviation,
    }


if __name__ == "__main__":
    typer.run(main)
