"""The gate of this project: what a subset is worth on real data, and that it stays that.

`CELLS` and their expectations: `accuracy_gate.py`. Each fails when the selection has significantly
less than the recorded gain over class-balanced random, and when its seeds vary so much that they
would notice a loss of one point from it with a probability below 0.9. What it does notice of a loss
of one point was measured: benchmarks/results/gate_power.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accuracy_gate import CELLS, CONFIDENCE, TRAINING, Cell, Digits, train, warm_up

from sage_torch.testing import assert_subset_accuracy

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "gate_power.json"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, and rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_keeps_its_gain_over_random(cell: Cell) -> None:
    digits = Digits(cell.flipped)
    comparison = assert_subset_accuracy(
        train,
        digits.evaluate,
        digits.train,
        cell.keep,
        seeds=cell.seeds,
        gain=cell.gain,
        confidence=CONFIDENCE,
        warm_up=warm_up,
        **cell.options,
    )
    print(comparison)  # shown by pytest -rP, and when the next line fails
    assert comparison.low > 0, "no longer significantly above random"


def test_expects_what_was_measured_with_other_seeds() -> None:
    record = json.loads(RECORD.read_text())
    settings = record["settings"]
    assert settings["seeds"] >= 60
    assert settings["confidence"] == CONFIDENCE
    assert settings["training"] == TRAINING
    for cell, measured in zip(CELLS, record["results"], strict=True):
        assert measured["cell"] == cell.name
        assert measured["options"] == cell.options
        assert measured["gate_seeds"] == [cell.seeds.start, cell.seeds.stop]
        assert settings["seeds"] <= cell.seeds.start  # they began at 0
        random, ours = (np.array(measured["accuracy"][name]) for name in ("random", "ours"))
        assert len(random) == len(ours) == settings["seeds"]
        mean = measured["gain_over_random"]["mean"]
        assert abs((ours - random).mean() - mean) < 1e-3  # accuracies are rounded
        assert cell.gain == measured["expected_gain"] == math.floor(10 * mean - 1) / 10
        # Against one point below that mean, and at the mean itself:
        assert measured["share_noticed"]["one point lost"] >= 0.9
        assert measured["share_noticed"]["nothing lost"] <= 0.02
