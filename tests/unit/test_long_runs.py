"""The benchmark of accuracy against time: what is charged, and what the tables say of it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.quality import long_runs, long_tables, rivals, trials
from benchmarks.quality.long_runs import LongContest, Price

CONDITION = trials.Condition("digits", noise=0.1, pool=1_280)  # 20 steps an epoch, 10 a half


@pytest.fixture(scope="module")
def contest() -> LongContest:
    return LongContest(CONDITION, trials.problem(CONDITION, 0, None), 0)


def planned(
    contest: LongContest, rule: str, total: int, first: int, again: int, sample: int = 0
) -> tuple[int, int]:
    """Return the plan at prices in steps."""
    contest.pace, contest.price = 0.5, Price(*(0.5 * each for each in (first, again, sample)))
    return contest._planned(rule, total, per_epoch=20, per_part=10)


def test_a_selection_is_taken_off_the_schedule(contest: LongContest) -> None:
    assert planned(contest, "rotate", 100, first=30, again=1) == (70, 1)
    assert planned(contest, "rotate", 51, first=30, again=1) == (21, 1)
    # No time is left for it, or nothing after it: the run sees all data.
    assert planned(contest, "rotate", 50, first=30, again=1) == (50, 0)
    assert planned(contest, "rotate", 15, first=3, again=1) == (15, 0)


def test_refreshes_are_taken_off_the_schedule(contest: LongContest) -> None:
    assert rivals.ROTATIONS["rotate, refreshed"]["refresh_every"] == 4
    # 20 steps, a selection, four parts of 10 steps, a refresh, and what is left.
    assert planned(contest, "rotate, refreshed", 120, first=30, again=15) == (75, 2)
    # The refresh would leave nothing to train with: the run ends before it.
    assert planned(contest, "rotate, refreshed", 105, first=30, again=15) == (60, 1)
    assert planned(contest, "rotate, refreshed", 106, first=30, again=15) == (61, 2)


def test_a_late_selection_has_more_warm_up(contest: LongContest) -> None:
    assert rivals.ROTATIONS["rotate, late"]["warmup_epochs"] == 4
    assert planned(contest, "rotate, late", 150, first=30, again=1) == (120, 1)
    assert planned(contest, "rotate, late", 110, first=30, again=1) == (110, 0)
    # A sample is read after the first of its epochs.
    assert planned(contest, "rotate, late", 150, first=30, again=1, sample=5) == (115, 1)
    assert planned(contest, "rotate", 100, first=30, again=1, sample=5) == (70, 1)
    # 20 steps, a selection, 8 parts of 10 steps, a refresh.
    assert planned(contest, "rotate, refreshed rarely", 200, first=30, again=15) == (155, 2)


def test_a_fixed_subset_pays_for_warm_up_and_choice(contest: LongContest) -> None:
    contest.pace = 0.5
    assert contest._left(100, 20, 15.0) == 50
    assert contest._left(100, 20, 500.0) == 1


def test_all_images_are_in_the_pool_of_the_test_split() -> None:
    whole = trials.problem(trials.Condition("digits", pool=0), 0, None)
    for_decisions = trials.problem(trials.Condition("digits", pool=0, split="validation"), 0, None)
    assert len(whole) == len(for_decisions) + len(for_decisions.evaluation)


def test_runs_are_written_and_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_runs, "EPOCHS", 8)
    out = tmp_path / "runs.jsonl"
    asked = {"data": "digits", "noise": "0.1", "budgets": "0.5", "seeds": 1, "out": out}
    rules = "all data;rs2;infobatch;random;sage"
    long_runs.main(**_defaults() | asked | {"rules": "random", "pool": 640})
    long_runs.main(**_defaults() | asked | {"rules": rules, "pool": 640})
    assert "2 runs to do" in (found := capsys.readouterr().out)
    assert "4 runs to do" in found
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [run["rule"] for run in runs] == ["30 epochs", "random", *rules.split(";")[:3], "sage"]
    for run in runs:
        charged = run["charged"]
        assert charged["total"] == (80 if run["rule"] == "30 epochs" else 40)
        paid = charged["warm_up"] + charged["selection"]
        takes_off = paid if run["rule"] == "sage" else 0
        assert charged["training"] == max(1, charged["total"] - takes_off)
        assert run["seconds"]["step"] > 0
        assert 0 < run["accuracy"] <= 100
    assert (runs[-1]["charged"]["warm_up"], runs[-1]["selections"]) == (10, 1)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match=r"expected a rule of .*, got .sagee."):
        list(long_runs._cells(CONDITION, ["sagee"], [0.5]))


@pytest.mark.parametrize(
    ("curve", "shown"),
    [
        ([(0.15, 80.0), (0.35, 90.0)], "25%"),
        ([(0.15, 80.0), (0.25, 84.0), (0.35, 88.0)], "28%"),
        ([(0.15, 85.0), (0.35, 90.0)], "≤ 15%"),
        ([(0.15, 80.0), (0.5, 84.9)], "> 50%"),
        ([], "–"),
    ],
)
def test_time_is_interpolated(curve: list[tuple[float, float]], shown: str) -> None:
    assert long_tables.time_to(85.0, curve) == shown


def test_tables_compare_with_all_data_in_the_same_time() -> None:
    runs = [run("30 epochs", 1.0, seed, 90.0 + seed) for seed in range(3)]
    for budget, less in ((0.15, 4.0), (0.35, 1.0)):
        runs += [run("all data", budget, seed, 90.0 + seed - less) for seed in range(3)]
        runs += [run("rotate", budget, seed, 91.0 + seed - less) for seed in range(3)]
    assert long_tables.conditions(runs) == [
        {"data": "digits", "noise": 0.1, "noise_kind": "symmetric", "pool": 1_280}
    ]
    _, _, full, shorter, ours = long_tables.of_rules(runs).splitlines()
    assert full.startswith("| all data, 30 epochs | 91.00 at 100 % |")
    assert "| 87.00 ± 1.00 | 90.00 ± 1.00 | *-1.00* | 68% | 0.0 % | 3 |" in shorter
    assert "| 91.00 ± 1.00<br>**+1.00** (+1.00 to +1.00) | +0.00 | 32% | 5.0 % | 3 |" in ours


def run(rule: str, budget: float, seed: int, accuracy: float) -> dict[str, Any]:
    selection = 30 if rule == "rotate" else 0
    charged = {"total": 600 * budget, "training": 0, "warm_up": 0, "selection": selection}
    fields = long_runs.Cell(CONDITION, rule, budget).fields(seed)
    return fields | {"accuracy": accuracy, "charged": charged}


def _defaults() -> dict[str, Any]:
    """Return what the command line would pass, but for what a test passes itself."""
    parameters = inspect.signature(long_runs.main).parameters
    return {name: each.default for name, each in parameters.items()}
