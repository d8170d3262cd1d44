"""The gate of this project: what a subset is worth on real data, and that it stays that.

`CELLS` and their expectations: `accuracy_gate.py`. Each fails when the selection has significantly
less than the recorded gain over class-balanced random, and when its seeds would notice a loss of
one point from it with a probability below 0.9.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accuracy_gate import CELLS, CONFIDENCE, Cell, Digits, train, warm_up

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


@pytest.mark.parametrize("place", range(len(CELLS)))
def test_expects_what_was_measured_with_other_seeds(place: int) -> None:
    record = json.loads(RECORD.read_text())
    cell, measured = CELLS[place], record["results"][place]
    assert measured["cell"] == cell.name
    assert measured["options"] == cell.options
    assert measured["gate_seeds"] == [cell.seeds.start, cell.seeds.stop]
    assert measured["expected_gain"] == cell.gain
    assert record["settings"]["seeds"] <= cell.seeds.start  # they began at 0
    assert measured["share_noticed"]["one point lost"] >= 0.9
