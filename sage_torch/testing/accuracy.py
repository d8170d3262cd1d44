"""For your own test suite: a subset must not train a worse model than a baseline does.

Needs scipy (`pip install 'sage-torch[demo]'`), which is imported when a comparison is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import nn
from torch.utils.data import Dataset, Subset
from typing_extensions import Unpack

from sage_torch.checks import count_examples, whole_number
from sage_torch.option_types import SelectionOptions
from sage_torch.options import Options
from sage_torch.reading.user_state import preserved, seed_everything
from sage_torch.select import select_subset
from sage_torch.testing.comparison import Comparison, t_quantile

__all__ = ["Comparison", "assert_subset_accuracy"]

Train = Callable[[Dataset[Any], int], nn.Module]
Evaluate = Callable[[nn.Module], float]
Baseline = Callable[[Dataset[Any], float, int], ArrayLike]


def assert_subset_accuracy(
    train: Train,
    evaluate: Evaluate,
    dataset: Dataset[Any],
    keep: float,
    *,
    seeds: Sequence[int] = range(10),
    against: Literal["random", "full"] | Baseline = "random",
    gain: float = 0.0,
    loss_of_interest: float = 1.0,
    confidence: float = 0.95,
    power: float = 0.9,
    warm_up: Train | None = None,
    **options: Unpack[SelectionOptions],
) -> Comparison:
    """Fail when models trained on SAGE's subsets are less accurate than those of a baseline.

    For each seed s, a model is warmed up, `select_subset(model, dataset, keep, seed=s, **options)`
    chooses with it, and two fresh models are trained with seed s: on the subset and on the
    baseline's. The differences `d_s` of their accuracies decide, by Student's paired t. It fails
    when `mean(d) + t * deviation(d) / sqrt(n) < gain`, t the quantile of `confidence`, one-sided.

    A pass means: these seeds show no significant loss, and a true mean loss of `loss_of_interest`
    would have failed with a probability of at least `power`.
    It does not mean that SAGE is better (read `low` of the result), or that there is no smaller
    loss. The power is an estimate: it takes the observed deviation for the true one, and both
    assume that differences are roughly normal. Seeds vary initialisation, order and subset, not the
    data: another training or test set may decide otherwise. Even with no loss at all, it fails with
    a probability of 1 - `confidence` when seeds or versions change. With the same seeds, it repeats
    itself as exactly as `train` does. You may add seeds because the power was too low. You may not
    add or change seeds until a significant loss goes away.

    Args:
        train: `train(dataset, seed)` returns a fresh model trained on `dataset`, a `Subset` of
            yours or all of it. Train each for as many steps, unless you compare equal epochs.
            The global generators of torch, NumPy and Python are seeded with `seed` before every
            call; CUDA's generator too, once CUDA is initialised.
        evaluate: `evaluate(model)` returns the accuracy on held-out examples, in percent.
        dataset: A data set as `select_subset` takes it; `train` adds augmentation, if any.
        keep: A share below 1, or a count below N.
        seeds: At least 2 different ones; each costs one warm-up, a selection and two trainings.
        against: `"random"` (class-balanced where targets are integer classes, as many examples,
            the same `quotas`), `"full"` (all data), or `(dataset, keep, seed) -> indices (m,)`.
        gain: Points over the baseline that SAGE must keep. 0 means "not worse"; a gain that you
            have measured with other seeds makes this a regression test of that gain.
        loss_of_interest: Points below `gain` that must not go unnoticed, above 0.
        confidence: Confidence of the test, in (0.5, 1).
        power: Least acceptable power, in (0, 1).
        warm_up: `warm_up(dataset, seed)` returns the model to select with, for example after one
            epoch; None to use `train` on the whole data set.
        **options: Options of `select_subset` except `seed`; `progress` is False by default.

    Returns:
        The comparison, for further assertions or a report.

    Raises:
        AssertionError: SAGE is significantly below the baseline + `gain`, the power is too low (the
            message says how many seeds suffice), or all accuracies agree exactly. The message
            ends in a table of all runs.
        ImportError: scipy is missing.
        TypeError, ValueError: An argument is of a wrong kind or out of range, `keep` leaves nothing
            out, or `evaluate` returned no percentage. All but the last before any training.

    Cost:
        n (warm-up + selection + 2 trainings), one after the other.

    Reference:
        Power of the t test: the noncentral t distribution, Johnson and Welch, Biometrika 1940.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from sage_torch.testing.accuracy import assert_subset_accuracy
        >>> labels = torch.arange(1_200) % 4
        >>> noise = torch.randn(1_200, 4, generator=torch.Generator().manual_seed(0))
        >>> data = torch.eye(4)[labels] + 0.4 * noise
        >>> def train(dataset, seed):
        ...     model = torch.nn.Linear(4, 4)
        ...     optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        ...     inputs, targets = map(torch.stack, zip(*dataset))
        ...     for _ in range(40):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        ...         optimizer.step()
        ...     return model
        >>> def evaluate(model):
        ...     return 100 * (model(data[200:]).argmax(1) == labels[200:]).float().mean()
        >>> comparison = assert_subset_accuracy(
        ...     train, evaluate, TensorDataset(data[:200], labels[:200]), keep=0.5,
        ...     seeds=range(4), gain=-5, loss_of_interest=5,
        ... )
        >>> comparison.examples
        (100, 100, 200)
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    seeds = _checked_seeds(seeds)
    _check_numbers(gain, loss_of_interest, confidence, power)
    options.setdefault("progress", False)
    asked = _checked_options(options, keep)
    total = count_examples(dataset)
    kept = asked.budget(total)
    if kept == total:
        raise ValueError(
            f"expected keep to leave examples out, got keep={keep}, which keeps all {total}"
        )
    _check_callables(train=train, evaluate=evaluate, warm_up=warm_up, against=against)
    t_quantile(confidence, 1)  # raise now, not after hours of training, without scipy
    runs = []
    with preserved(nn.Module()):  # the caller's random states and grad mode
        for seed in seeds:
            selector = _seeded(train if warm_up is None else warm_up, dataset, seed)
            selection = select_subset(selector, dataset, keep, seed=seed, **options)
            sage = _seeded(train, Subset(dataset, selection.indices.tolist()), seed)
            if against == "full":
                others = total
                # Without a warm-up, the model trained on all data is also the one to select with.
                rival = selector if warm_up is None else _seeded(train, dataset, seed)
            else:
                indices = _rival_indices(against, selector, dataset, keep, seed, options)
                others = len(indices)
                rival = _seeded(train, Subset(dataset, indices), seed)
            runs.append((_accuracy(evaluate, sage), _accuracy(evaluate, rival)))
            _refuse_fractions(runs)
    accuracies = np.array(runs, np.float64)
    comparison = Comparison(
        seeds=seeds,
        sage=accuracies[:, 0],
        baseline=accuracies[:, 1],
        against=against if isinstance(against, str) else getattr(against, "__name__", "baseline"),
        examples=(kept, others, total),
        gain=float(gain),
        loss_of_interest=float(loss_of_interest),
        confidence=float(confidence),
        wanted_power=float(power),
    )
    problem = comparison.problem()
    if problem is not None:
        raise AssertionError(f"{problem}\n\n{comparison}")
    return comparison


def _seeded(train: Train, dataset: Dataset[Any], seed: int) -> nn.Module:
    seed_everything(seed)
    return train(dataset, seed)


def _rival_indices(
    against: str | Baseline,
    model: nn.Module,
    dataset: Dataset[Any],
    keep: float,
    seed: int,
    options: SelectionOptions,
) -> list[int]:
    if not callable(against):
        drawn: SelectionOptions = {**options, "rule": "random", "class_balanced": "auto"}
        chosen: list[int] = select_subset(model, dataset, keep, seed=seed, **drawn).indices.tolist()
        return chosen
    indices = np.asarray(against(dataset, keep, seed))
    total = count_examples(dataset)
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        raise ValueError(
            "expected against() to return integer indices of shape (m,), got "
            f"{indices.dtype} of shape {indices.shape}"
        )
    if indices.min() < 0 or indices.max() >= total or len(np.unique(indices)) < len(indices):
        raise ValueError(f"expected against() to return different indices within [0, {total})")
    return [int(index) for index in indices]


def _accuracy(evaluate: Evaluate, model: nn.Module) -> float:
    accuracy = float(evaluate(model))
    if not 0 <= accuracy <= 100:
        raise ValueError(f"expected evaluate() to return a percentage in [0, 100], got {accuracy}")
    return accuracy


def _refuse_fractions(runs: list[tuple[float, float]]) -> None:
    # Shares taken for percents would make each loss look a hundred times smaller, and pass.
    if len(runs) == 2 and 0 < max(max(run) for run in runs) <= 1:
        raise ValueError(
            f"expected evaluate() to return percent, got nothing above 1 in {runs}: multiply by 100"
        )


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    found = tuple(seeds) if isinstance(seeds, (Sequence, np.ndarray)) else ()
    if len(found) < 2 or len(set(found)) < len(found):
        raise ValueError(
            f"expected at least 2 different seeds in [0, 2**63), as range(10), got {seeds!r}"
        )
    return tuple(whole_number("seeds", seed, wanted="whole numbers") for seed in found)


def _check_numbers(gain: float, loss_of_interest: float, confidence: float, power: float) -> None:
    for name, value, low, high, wanted in (
        ("gain", gain, -100.0, 100.0, "points in (-100, 100)"),
        ("loss_of_interest", loss_of_interest, 0.0, 100.0, "points in (0, 100)"),
        ("confidence", confidence, 0.5, 1.0, "a probability in (0.5, 1)"),
        ("power", power, 0.0, 1.0, "a probability in (0, 1)"),
    ):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"expected {name} to be {wanted}, got {value!r}")
        if not low < float(value) < high:
            raise ValueError(f"expected {name} to be {wanted}, got {value!r}")


def _checked_options(options: SelectionOptions, keep: float) -> Options:
    if "seed" in options:
        raise TypeError("expected seeds=, a sequence, got seed=: every seed is one paired run")
    draw = options.get("draw", "fixed")
    if draw != "fixed":
        raise ValueError(f"expected draw='fixed', got {draw!r}: train sees one plain subset")
    return Options.given(keep=keep, **options)


def _check_callables(**given: object) -> None:
    for name, value in given.items():
        if callable(value) or (name == "warm_up" and value is None):
            continue
        if name == "against":
            if value in ("random", "full"):
                continue
            raise ValueError(
                'expected against "random", "full" or (dataset, keep, seed) -> indices, got '
                f"{value!r}"
            )
        raise TypeError(f"expected {name} to be callable, got {value!r}")
