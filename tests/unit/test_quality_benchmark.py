"""The benchmark that the README quotes: pools, training, tables, and going on where it stopped."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from benchmarks.quality import lines, quality, rivals, tables, trials
from benchmarks.quality.runs import difference


def test_a_pool_is_a_function_of_the_seed() -> None:
    condition = trials.Condition("digits", noise=0.2, pool=500)
    first, again, other = (trials.problem(condition, seed, None) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert first.is_wrong.sum() == 100
    clean = trials.problem(trials.Condition("digits", pool=500), 3, None)
    assert torch.equal(clean.images, first.images)
    assert ((clean.labels != first.labels).numpy() == first.is_wrong).all()


def test_pair_noise_goes_to_the_next_class() -> None:
    clean = trials.problem(trials.Condition("digits"), 0, None)
    noisy = trials.problem(trials.Condition("digits", noise=0.4, noise_kind="pair"), 0, None)
    moved = (noisy.labels - clean.labels)[torch.from_numpy(noisy.is_wrong)] % 10
    assert (moved == 1).all()


def test_no_pool_holds_an_image_of_the_validation_split() -> None:
    validation = trials.problem(trials.Condition("digits", split="validation"), 0, None)
    held_out = {row.numpy().tobytes() for row in validation.evaluation.tensors[0]}
    assert len(held_out) > 200
    for seed in range(5):
        pool = trials.problem(trials.Condition("digits"), seed, None).images
        assert not held_out & {row.contiguous().numpy().tobytes() for row in pool}


def test_a_long_tail_has_the_ratio_asked_for() -> None:
    tail = trials.problem(trials.Condition("digits", imbalance=20), 1, None)
    sizes = np.bincount(tail.labels.numpy(), minlength=10)
    assert (np.diff(sizes) <= 0).all()
    assert sizes[0] / sizes[-1] == pytest.approx(20, rel=0.1)


def test_training_takes_exactly_the_steps() -> None:
    condition = trials.Condition("digits", pool=300)
    problem = trials.problem(condition, 0, None)
    runs = []
    for _ in range(2):
        training = trials.Training(problem, trials.network(condition, problem, 0), 50, 0)
        losses = training.epoch(np.arange(300))
        assert training.taken == 300 // trials.BATCH
        assert int(losses.isnan().sum()) == 300 % trials.BATCH  # no short batch
        runs.append(training.finish(lambda _: (np.arange(300), None)))
        assert runs[-1].steps == 50
    assert runs[0].accuracy == runs[1].accuracy > 30


def test_weights_of_one_change_nothing() -> None:
    condition = trials.Condition("digits", pool=200)
    problem = trials.problem(condition, 0, None)
    found = []
    for weights in (None, np.ones(200, np.float32), np.linspace(0, 2, 200, dtype=np.float32)):
        training = trials.Training(problem, trials.network(condition, problem, 0), 6, 0)
        training.epoch(np.arange(200), weights)
        found.append(next(training.model.parameters()).detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "rule",
    ["random", "sage", "agreement", "el2n", "craig", "rotate", "rs2", "infobatch", "all data"],
)
def test_every_kind_of_rule_runs(rule: str) -> None:
    condition = trials.Condition("digits", noise=0.1, pool=300)
    contest = rivals.Contest(condition, trials.problem(condition, 0, None), 0)
    outcome = contest.run(rule, 0.25, lambda *_: 12)
    assert outcome.trained.steps == 12
    assert outcome.k == (300 if rule == "all data" else 75)
    assert (outcome.warm_up > 0) == (rule in ("sage", "agreement", "el2n", "craig"))
    assert (outcome.selection > 0) == (rule != "all data")


def test_a_run_that_is_there_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.jsonl"
    cell = quality.Cell(quality.Condition("digits", pool=300), "random", 0.5)
    line = cell.fields(0) | {"accuracy": 50.0}
    out.write_text(json.dumps(line) + "\n" + '{"data": "digits", "noi')  # the second was cut off
    assert lines.done(out, quality._DEFAULTS) == {cell.key(0)}
    asked = {"data": "digits", "rules": "random", "keep": "0.5", "noise": "0", "pool": 300}
    quality.main(**_defaults() | asked | {"seeds": 1, "out": out})
    assert "0 runs to do, 1 there" in capsys.readouterr().out


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match=r"expected a rule of .*, got .sagee."):
        list(quality._rows(["sagee"], [0.5]))


def test_differences_are_paired_by_seed() -> None:
    def runs(*accuracies: float, data: str = "a") -> list[dict[str, object]]:
        return [{"data": data, "seed": i, "accuracy": one} for i, one in enumerate(accuracies)]

    mean, low, high, count = difference(runs(11, 22, 33), runs(10, 20, 30))
    assert (mean, count) == (2, 3)
    assert high - mean == pytest.approx(4.302652729911275 / 3**0.5)  # t of 2 degrees, deviation 1
    assert mean - low == pytest.approx(high - mean)
    assert difference(runs(1), runs(1)) is None
    # Of two data sets the mean is taken seed by seed; a seed with one of them does not count.
    ours = runs(1, 2, 3) + runs(5, 8, data="b")
    theirs = runs(0, 0, 0) + runs(0, 0, data="b")
    mean, _, _, count = difference(ours, theirs, data_sets=2)
    assert (mean, count) == (pytest.approx((3 + 5) / 2), 2)
    with pytest.raises(ValueError, match="got two of"):
        difference(runs(1, 2) + runs(3), runs(1, 2))


def test_tables_hold_every_rule_and_mark_what_is_sure() -> None:
    def run(rule: str, seed: int, accuracy: float, keep: float = 0.25) -> dict[str, object]:
        cell = quality.Cell(trials.Condition("digits"), rule, keep)
        seconds = {"warm_up": 1.0, "selection": 2.0, "training": 3.0}
        return cell.fields(seed) | {"accuracy": accuracy, "k": 9, "seconds": seconds}

    runs = [run("random", seed, 50.0 + seed) for seed in range(4)]
    runs += [run("sage", seed, 52.0 + seed + 0.1 * (seed % 2)) for seed in range(4)]
    runs += [run("a rule without a name", seed, 49.0 + seed) for seed in range(4)]
    lines = tables.of_rules(runs, "fixed subset", "random", "accuracy").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| class-balanced random",
        "| **SAGE (default)**",
        "| a rule without a name",
    ]
    assert "**+2.05** (" in lines[3]
    assert "*-1.00* (-1.00 to -1.00)" in lines[4]
    assert lines[3].endswith("| 4 | 1.0 + 2.0 |")


def _defaults() -> dict[str, object]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(quality.main).parameters.items()
    }
