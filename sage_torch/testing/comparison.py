"""Paired accuracies of two ways to choose a subset, compared by Student's t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_SEEDS = 100_000  # the search for a sufficient number of seeds stops here


@dataclass(frozen=True, eq=False)
class Comparison:
    """Accuracies of models trained on SAGE's subsets and on a baseline's, paired by seed.

    `str(comparison)` is an aligned table of everything here.

    Attributes:
        seeds: The n seeds.
        sage: float64 (n,), accuracy on SAGE's subset, in percent.
        baseline: float64 (n,), accuracy on the baseline's.
        against: The baseline's name.
        examples: How many examples SAGE kept, how many the baseline kept, and how many there are.
        gain: Points over the baseline that SAGE must not be significantly below.
        loss_of_interest: Points below `gain` that must not go unnoticed.
        confidence: Confidence of the one-sided test and of each bound.
        wanted_power: Least power against `loss_of_interest`.
    """

    seeds: tuple[int, ...]
    sage: NDArray[np.float64]
    baseline: NDArray[np.float64]
    against: str
    examples: tuple[int, int, int]
    gain: float = 0.0
    loss_of_interest: float = 1.0
    confidence: float = 0.95
    wanted_power: float = 0.9

    @property
    def differences(self) -> NDArray[np.float64]:
        """SAGE minus the baseline for each seed, float64 (n,), in points."""
        return self.sage - self.baseline

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(self.differences.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation of the differences, with n - 1 degrees of freedom."""
        return float(self.differences.std(ddof=1))

    @property
    def low(self) -> float:
        """One-sided lower bound of the mean difference at `confidence`."""
        return self.mean - self._reach()

    @property
    def high(self) -> float:
        """One-sided upper bound of the mean difference at `confidence`."""
        return self.mean + self._reach()

    @property
    def is_below(self) -> bool:
        """Whether SAGE is significantly below the baseline + `gain`."""
        return self.high < self.gain

    @property
    def power(self) -> float:
        """Chance to notice a loss of `loss_of_interest`, if `deviation` is the true one."""
        return self._power_with(len(self.seeds))

    @property
    def seeds_needed(self) -> int | None:
        """Least number of seeds with `wanted_power` at this deviation; None: over 100,000."""
        enough = 2
        while self._power_with(enough) < self.wanted_power:
            enough *= 2
            if enough > _MOST_SEEDS:
                return None
        too_few = max(1, enough // 2)
        while enough - too_few > 1:  # power grows with the number of seeds: bisect
            middle = (enough + too_few) // 2
            if self._power_with(middle) < self.wanted_power:
                too_few = middle
            else:
                enough = middle
        return enough

    def problem(self) -> str | None:
        """Return in one sentence why this is no evidence of a good subset, or None."""
        count, rival = len(self.seeds), self.against
        if np.array_equal(self.sage, self.baseline):
            return (
                f"SAGE and {rival} were equally accurate to the last digit with every seed, which "
                "tells nothing: does train use the data set that it is given, and evaluate the "
                "model?"
            )
        if self.is_below:
            beyond = f" + {points(self.gain)}" if self.gain else ""
            return (
                f"SAGE is significantly below {rival}{beyond}: {self.mean:+.2f} points in the mean "
                f"of {count} paired seeds, at most {self.high:+.2f} at {100 * self.confidence:g} % "
                "confidence"
            )
        if self.power < self.wanted_power:
            needed = self.seeds_needed
            cure = f"over {_MOST_SEEDS:,}" if needed is None else f"about {needed:,}"
            return (
                f"{count} seeds cannot tell: a loss of {points(self.loss_of_interest)} would be "
                f"noticed with a probability of {self.power:.2f}, wanted is {self.wanted_power:g}; "
                f"{cure} seeds would do with differences that vary as these do "
                f"(deviation {self.deviation:.2f}), or a larger test set and longer training to "
                "lower it"
            )
        return None

    def __str__(self) -> str:
        kept, others, total = self.examples
        names = ("seed", "SAGE", self.against, "difference")
        rows = [
            (str(seed), f"{sage:.2f}", f"{other:.2f}", f"{sage - other:+.2f}")
            for seed, sage, other in zip(self.seeds, self.sage, self.baseline, strict=True)
        ]
        mean = (f"{self.sage.mean():.2f}", f"{self.baseline.mean():.2f}", f"{self.mean:+.2f}")
        rows.append(("mean", *mean))
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        lines = [
            f"accuracy in %: SAGE with {kept:,} of {total:,} examples, {self.against} with "
            f"{others:,}",
            *(
                "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
                for row in (names, *rows)
            ),
            f"mean difference {self.mean:+.2f}, deviation {self.deviation:.2f}; bounds of the mean "
            f"{self.low:+.2f} and {self.high:+.2f}, each at {100 * self.confidence:g} % confidence",
            f"power against a loss of {points(self.loss_of_interest)}"
            + (f" from a gain of {self.gain:g}" if self.gain else "")
            + f": {self.power:.3f}, wanted {self.wanted_power:g}",
        ]
        return "\n".join(lines)

    def _reach(self) -> float:
        count = len(self.seeds)
        return t_quantile(self.confidence, count - 1) * self.deviation / math.sqrt(count)

    def _power_with(self, count: int) -> float:
        """P(T < -t) for a T of the noncentral t distribution, `count - 1` degrees of freedom."""
        from scipy import stats  # type: ignore[import-untyped]

        if self.deviation == 0:
            return 1.0
        shift = self.loss_of_interest * math.sqrt(count) / self.deviation
        critical = t_quantile(self.confidence, count - 1)
        return float(stats.nct.sf(critical, count - 1, shift))


def points(value: float) -> str:
    """Return "1 point", "2.5 points"."""
    return f"{value:g} point" + ("" if value == 1 else "s")


def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution.

    Raises:
        ImportError: scipy is missing.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "assert_subset_accuracy needs scipy: pip install 'sage-torch[demo]'"
        ) from error
    return float(stats.t.ppf(probability, freedom))
