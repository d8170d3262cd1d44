"""`assert_subset_accuracy` catches a loss as often as it says, and refuses what it cannot judge."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from sage_torch.testing import Comparison, assert_subset_accuracy

checked = settings(max_examples=40, derandomize=True, deadline=None, database=None)


def comparison(differences: Any, **fields: Any) -> Comparison:
    differences = np.asarray(differences, np.float64)
    named = {"against": "random", "examples": (5, 5, 20)} | fields
    return Comparison(
        seeds=tuple(range(len(differences))),
        sage=90 + differences,
        baseline=np.full(len(differences), 90.0),
        **named,
    )


class Fake:
    """Training without training: an accuracy of known mean and noise by kind of subset.

    The first call of a seed is the warm-up, the second SAGE's subset, the third the baseline's.
    """

    def __init__(self, lost: float = 0.0, noise: float = 0.5, random: int = 0) -> None:
        self.lost, self.noise = lost, noise
        self.calls: list[tuple[int, int]] = []
        self.drawn: list[float] = []
        self._random = np.random.default_rng(random)

    def train(self, dataset: Dataset[Any], seed: int) -> nn.Module:
        model = nn.Linear(6, 3)
        kind = len(self.calls) % 3
        self.calls.append((seed, len(dataset)))  # type: ignore[arg-type]
        self.drawn.append(float(torch.rand(())))
        noise = self.noise * float(self._random.standard_normal())
        model.accuracy = 90 + noise - (self.lost if kind == 1 else 0)  # type: ignore[assignment]
        return model

    def evaluate(self, model: nn.Module) -> float:
        return float(model.accuracy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lost", "low", "high"), [(1.0, 0.9, 1.0), (0.0, 0.02, 0.07)], ids=["one point", "nothing"]
)
def test_is_noticed_as_often_as_stated(lost: float, low: float, high: float) -> None:
    # 12 seeds, deviation 1: the noncentral t distribution gives a power of 0.94, 0.05 at no loss.
    random = np.random.default_rng(0)
    gates = [comparison(random.standard_normal(12) - lost) for _ in range(2_000)]
    assert low <= np.mean([gate.is_below for gate in gates]) <= high


def test_whole_gate_catches_a_point_and_lets_nothing_pass_for_a_loss() -> None:
    # 16 seeds, deviation 0.8: power 0.999, so that a short power is as good as never observed.
    random = np.random.default_rng(1)
    for lost, least, most in ((1.0, 0.9, 1.0), (0.0, 0.0, 0.07)):
        pools = 0.8 * random.standard_normal((800, 16)) - lost
        failed = np.mean([comparison(pool).problem() is not None for pool in pools])
        assert least <= failed <= most, lost


@pytest.mark.parametrize(("lost", "least", "most"), [(1.0, 0.9, 1.0), (0.0, 0.0, 0.07)])
def test_judges_what_train_and_evaluate_say(
    lost: float, least: float, most: float, blobs: TensorDataset
) -> None:
    # Differences of deviation 0.57 from 10 seeds: a power of 0.999; "random" selects fastest.
    few = TensorDataset(*(part[:12] for part in blobs.tensors))
    repeats, failures = 50, []
    for repeat in range(repeats):
        fake = Fake(lost, noise=0.4, random=repeat)
        try:
            assert_subset_accuracy(fake.train, fake.evaluate, few, 0.5, rule="random")
        except AssertionError as error:
            failures.append(str(error))
    assert least <= len(failures) / repeats <= most
    assert all("significantly below random" in failure for failure in failures)


@settings(checked, max_examples=12)
@given(
    count=st.integers(2, 60),
    deviation=st.floats(0.1, 10),
    loss=st.floats(0.1, 5),
    confidence=st.floats(0.6, 0.995),
)
def test_power_is_that_of_the_definition(
    count: int, deviation: float, loss: float, confidence: float
) -> None:
    # P(mean < -t s / sqrt(n)) with mean ~ N(-loss, sigma/sqrt(n)), integrated over s ~ chi.
    spread = np.resize([1.0, -1.0], count) * deviation
    one = comparison(spread, loss_of_interest=loss, confidence=confidence)
    sigma, freedom = spread.std(ddof=1), count - 1
    critical = stats.t.ppf(confidence, freedom)

    def at(share: float) -> float:  # at a quantile of the deviation
        observed = sigma * np.sqrt(stats.chi2.ppf(share, freedom) / freedom)
        reach = critical * observed / np.sqrt(count)
        return float(stats.norm.cdf((loss - reach) / (sigma / np.sqrt(count))))

    expected = integrate.quad(at, 0, 1, limit=200)[0]
    assert one.power == pytest.approx(expected, abs=2e-4)


@checked
@given(deviation=st.floats(0.3, 8), wanted=st.floats(0.3, 0.99))
def test_needed_seeds_are_the_fewest(deviation: float, wanted: float) -> None:
    one = comparison(np.array([1.0, -1.0]) * deviation, wanted_power=wanted)
    needed = one.seeds_needed
    assert needed is not None

    def power(count: int) -> float:
        shift = np.sqrt(count) / one.deviation
        return float(stats.nct.sf(stats.t.ppf(0.95, count - 1), count - 1, shift))

    assert power(needed) >= wanted
    assert needed == 2 or power(needed - 1) < wanted


def test_bounds_are_those_of_the_paired_t_test() -> None:
    random = np.random.default_rng(3)
    sage, baseline = 90 + random.standard_normal((2, 9))
    one = Comparison(tuple(range(9)), sage, baseline, "random", (5, 5, 20), confidence=0.9)
    interval = stats.ttest_rel(sage, baseline).confidence_interval(0.8)  # two-sided: both bounds
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    p = stats.ttest_rel(sage, baseline, alternative="less").pvalue
    for confidence in (1 - 1.01 * p, 1 - 0.99 * p):
        again = Comparison(one.seeds, sage, baseline, "random", (5, 5, 20), confidence=confidence)
        assert again.is_below == (p < 1 - confidence)


def test_gain_is_what_must_not_be_lost() -> None:
    differences = [1.9, 2.1, 2.0, 2.2, 1.8]
    assert comparison(differences).problem() is None
    assert comparison(differences, gain=1.95).problem() is None
    problem = comparison(differences, gain=3.0).problem()
    assert problem is not None
    assert "significantly below random + 3 points: +2.00 points" in problem


def test_short_power_fails_and_says_how_many_seeds_would_do() -> None:
    one = comparison([1.5, -1.5, 2.0, -2.0])
    problem = one.problem()
    assert problem is not None
    assert problem.startswith("4 seeds cannot tell: a loss of 1 point would be noticed")
    assert f"about {one.seeds_needed} seeds would do" in problem
    hopeless = comparison([1.0, -1.0], loss_of_interest=1e-4)
    assert hopeless.seeds_needed is None
    assert "over 100,000 seeds" in str(hopeless.problem())


def test_a_loss_is_named_before_a_short_power() -> None:
    problem = comparison([-5.0, -9.0, -7.0, -8.0]).problem()
    assert "significantly below" in str(problem)


def test_equal_accuracies_tell_nothing() -> None:
    assert "does train use the data set" in str(comparison([0.0, 0.0, 0.0]).problem())
    assert comparison([1.0, 1.0, 1.0]).problem() is None
    assert "significantly below" in str(comparison([-1.0, -1.0]).problem())


def test_table_is_aligned() -> None:
    lines = str(comparison([1.0, -0.5, 11.0])).splitlines()
    rows = lines[1:6]
    assert rows[0].split() == ["seed", "SAGE", "random", "difference"]
    assert rows[3].split() == ["2", "101.00", "90.00", "+11.00"]
    assert rows[4].split() == ["mean", "93.83", "90.00", "+3.83"]
    assert len({len(row) for row in rows}) == 1
    assert lines[0] == "accuracy in %: SAGE with 5 of 20 examples, random with 5"


def test_fails_with_the_table(blobs: TensorDataset) -> None:
    fake = Fake(lost=5)
    with pytest.raises(AssertionError) as failed:
        assert_subset_accuracy(fake.train, fake.evaluate, blobs, 0.3, rule="random", seeds=(4, 7))
    problem, table = str(failed.value).split("\n\n")
    assert "SAGE" in problem
    assert [line.split()[0] for line in table.splitlines()[1:5]] == ["seed", "4", "7", "mean"]


def run(fake: Fake, dataset: Any, **options: Any) -> Comparison:
    defaults: dict[str, Any] = {"seeds": range(3), "loss_of_interest": 50, "gain": -50}
    keep = options.pop("keep", 0.3)
    settings = {"rule": "agreement"} | defaults | options
    return assert_subset_accuracy(fake.train, fake.evaluate, dataset, keep, **settings)


def test_trains_what_it_says(blobs: TensorDataset) -> None:
    fake = Fake()
    result = run(fake, blobs)
    assert fake.calls == [(seed, size) for seed in range(3) for size in (90, 27, 27)]
    assert result.examples == (27, 27, 90)
    # The three of a seed start from the same random state, those of other seeds from others.
    by_seed = np.array(fake.drawn).reshape(3, 3)
    assert (by_seed == by_seed[:, :1]).all()
    assert len(np.unique(by_seed)) == 3


def test_random_baseline_has_the_quotas(blobs: TensorDataset) -> None:
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 10)
    tailed = TensorDataset(blobs.tensors[0], labels)
    for quotas, expected in (("proportional", [20, 7, 3]), ("equal", [10, 10, 10])):
        seen: list[list[int]] = []
        fake = Fake()

        def train(dataset: Any, seed: int, fake: Fake = fake, seen: Any = seen) -> nn.Module:
            seen.append(torch.bincount(torch.stack([label for _, label in dataset])).tolist())
            return fake.train(dataset, seed)

        assert_subset_accuracy(
            train, fake.evaluate, tailed, 30, seeds=(0, 1), gain=-50, loss_of_interest=50,
            quotas=quotas, class_balanced=True, gradients="last_layer",
        )  # fmt: skip
        assert seen[2] == seen[5] == expected
        assert seen[1] == expected


def test_all_data_and_indices_of_yours_are_baselines(blobs: TensorDataset) -> None:
    fake = Fake()
    trained = 0

    def train(dataset: Any, seed: int) -> nn.Module:
        nonlocal trained
        trained += 1
        return fake.train(dataset, seed)

    result = assert_subset_accuracy(
        train, fake.evaluate, blobs, 0.3, against="full", seeds=(0, 1),
        gain=-50, loss_of_interest=50, rule="agreement",
    )  # fmt: skip
    assert result.examples == (27, 90, 90)
    assert trained == 4  # the model of all data is the one that selects

    def first(dataset: Dataset[Any], keep: float, seed: int) -> list[int]:
        return list(range(seed, seed + 10))

    fake = Fake()
    result = run(fake, blobs, against=first, warm_up=fake.train)
    assert result.examples == (27, 10, 90)
    assert result.against == "first"
    assert fake.calls[2] == (0, 10)


@pytest.mark.parametrize("indices", [[0, 0], [-1, 2], [90], [], [[1]], [0.5]])
def test_wrong_indices_are_refused(indices: Any, blobs: TensorDataset) -> None:
    with pytest.raises(ValueError, match=r"expected against\(\) to return"):
        run(Fake(), blobs, against=lambda dataset, keep, seed: indices)


def test_leaves_the_random_states_alone(blobs: TensorDataset) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    run(Fake(), blobs)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"seeds": [1]}, ValueError, "at least 2 different seeds"),
        ({"seeds": [1, 1]}, ValueError, "at least 2 different seeds"),
        ({"seeds": [-1, 1]}, ValueError, "seeds of at least 0 and below"),
        ({"seeds": 10}, ValueError, "at least 2 different seeds"),
        ({"seeds": [0.5, 1]}, TypeError, "whole numbers"),
        ({"seed": 3}, TypeError, "seeds=, a sequence"),
        ({"against": "luck"}, ValueError, '"random", "full" or'),
        ({"gain": float("nan")}, ValueError, "gain"),
        ({"loss_of_interest": 0}, ValueError, "loss_of_interest"),
        ({"confidence": 95}, ValueError, "confidence"),
        ({"confidence": "high"}, TypeError, "confidence"),
        ({"power": 1}, ValueError, "power"),
        ({"warm_up": 3}, TypeError, "warm_up to be callable"),
        ({"rule": "best"}, ValueError, "rule"),
        ({"draw": "rotate"}, ValueError, "one plain subset"),
        ({"keep": 1.0}, ValueError, "leave examples out"),
        ({"keep": 91}, ValueError, "at most 90"),
    ],
)
def test_bad_input_is_refused_before_training(
    options: dict[str, Any], error: type[Exception], says: str, blobs: TensorDataset
) -> None:
    fake = Fake()
    with pytest.raises(error, match=says):
        run(fake, blobs, **options)
    assert fake.calls == []


@pytest.mark.parametrize("accuracy", [float("nan"), -1.0, 101.0])
def test_no_percentage_is_refused(accuracy: float, blobs: TensorDataset) -> None:
    fake = Fake()
    fake.evaluate = lambda model: accuracy  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"a percentage in \[0, 100\]"):
        run(fake, blobs)


def test_shares_are_not_taken_for_percents(blobs: TensorDataset) -> None:
    fake = Fake()
    fake.evaluate = lambda model: float(model.accuracy) / 100  # type: ignore[method-assign, arg-type]
    with pytest.raises(ValueError, match="multiply by 100"):
        run(fake, blobs, seeds=range(10))
    assert len(fake.calls) == 6  # at the second seed, not at the last


def test_missing_scipy_is_named_before_training(
    blobs: TensorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    fake = Fake()
    with pytest.raises(ImportError, match=r"pip install 'sage-torch\[demo\]'"):
        run(fake, blobs)
    assert fake.calls == []


def test_subsets_are_of_the_data_set(blobs: TensorDataset) -> None:
    fake = Fake()

    def train(dataset: Any, seed: int) -> nn.Module:
        assert dataset is blobs or (isinstance(dataset, Subset) and dataset.dataset is blobs)
        return fake.train(dataset, seed)

    result = assert_subset_accuracy(
        train, fake.evaluate, blobs, 9, seeds=(0, 1), gain=-50, loss_of_interest=50,
        rule="agreement",
    )  # fmt: skip
    assert result.examples == (9, 9, 90)
