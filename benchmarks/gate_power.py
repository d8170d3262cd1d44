"""What does the accuracy gate notice?

The gate is `tests/quality/test_accuracy.py`. Real runs with seeds that it does not use give the
gain of the selection over class-balanced random, from which its expectation comes (less a standard
error, rounded down to a tenth), and a pool of paired differences. From that pool, as many as the
gate has seeds are drawn again and again, and the gate's own test judges them:

- shifted to a mean one point below the expectation: the share noticed is the gate's power;
- shifted to the expectation: the share noticed is its rate of false alarms;
- and without a shift for selections that are worse in earnest.

    python benchmarks/gate_power.py
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from record import RESULTS, environment, write
from torch.utils.data import Subset

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from accuracy_gate import CELLS, CONFIDENCE, Cell, Digits, train, warm_up

from sage_torch import select_subset
from sage_torch.options import SelectionOptions
from sage_torch.testing import Comparison

# On clean digits the default trim drops nothing; what is lost without one shows where labels lie.
WORSE: dict[str, SelectionOptions] = {"nothing trimmed": {"trim": None}}


def main(
    seeds: Annotated[int, typer.Option(help="How many, from 0; the gate's begin at 1,000.")] = 100,
    draws: Annotated[int, typer.Option(help="Simulated gates of each kind.")] = 2_000,
) -> None:
    """Measure every cell and write the numbers down."""
    torch.set_num_threads(1)
    if seeds > min(cell.seeds.start for cell in CELLS):
        raise typer.BadParameter("expected seeds that the gate does not use")
    where = environment("scikit-learn", "scipy")
    record = {
        "question": "What does the accuracy gate notice?",
        **where,
        "settings": {"seeds": seeds, "draws": draws, "confidence": CONFIDENCE},
        "results": [measured(cell, seeds, draws) for cell in CELLS],
    }
    write(RESULTS / "gate_power.json", record)


def measured(cell: Cell, seeds: int, draws: int) -> dict[str, Any]:
    """Return a cell's accuracies by selection, and what the gate would have noticed."""
    return judged(cell, accuracies(cell, seeds), draws)


def judged(cell: Cell, accuracy: dict[str, NDArray[np.float64]], draws: int) -> dict[str, Any]:
    """Return the gains of these runs, and what the gate would have noticed."""
    gains = {name: accuracy[name] - accuracy["random"] for name in accuracy if name != "random"}
    ours = gains["ours"]
    found = spread(ours)
    expected = math.floor(10 * (found["mean"] - found["standard_error"])) / 10
    pools = {
        "one point lost": ours - ours.mean() + expected - 1,
        "nothing lost": ours - ours.mean() + expected,
        **gains,
    }
    noticed = {name: share_noticed(cell, pool, expected, draws) for name, pool in pools.items()}
    typer.echo(f"{cell.name}: {len(cell.seeds)} seeds, expected gain {expected:+g}")
    for name, gain in gains.items():
        typer.echo(f"  {name}: {gain.mean():+.2f} ± {gain.std(ddof=1):.2f} over random")
    for name, share in noticed.items():
        typer.echo(f"  noticed, {name}: {share:.3f}")
    return {
        "cell": cell.name,
        "options": cell.options,
        "gate_seeds": [cell.seeds.start, cell.seeds.stop],
        "expected_gain": expected,
        "gain_over_random": {name: spread(gain) for name, gain in gains.items()},
        "share_noticed": noticed,
        "accuracy": {name: by_seed.round(3).tolist() for name, by_seed in accuracy.items()},
    }


def accuracies(cell: Cell, seeds: int) -> dict[str, NDArray[np.float64]]:
    """Return test accuracies by seed: random, ours, and, where labels lie, of worse ones."""
    digits = Digits(cell.flipped)
    selections: dict[str, SelectionOptions] = {"random": {"rule": "random"}, "ours": cell.options}
    if cell.flipped:
        selections |= WORSE
    found: dict[str, list[float]] = {name: [] for name in selections}
    for seed in range(seeds):
        selector = warm_up(digits.train, seed)
        for name, options in selections.items():
            chosen = select_subset(
                selector, digits.train, cell.keep, seed=seed, progress=False, **options
            )
            model = train(Subset(digits.train, chosen.indices.tolist()), seed)
            found[name].append(digits.evaluate(model))
    return {name: np.array(by_seed) for name, by_seed in found.items()}


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
