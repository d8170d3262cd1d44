"""Examples of a few classes for the property tests of the rules, and what the rules share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import reference
import reference_rules
from hypothesis import settings
from hypothesis import strategies as st

from sage_torch import _core

Floats32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]

checked = settings(max_examples=60, derandomize=True, deadline=None, database=None)
trims = st.one_of(st.none(), st.just("negative"), st.floats(0, 0.99))


@dataclass(frozen=True)
class Case:
    """Examples of a few classes and how many of each to keep."""

    class_ids: Ids  # (N,)
    quotas: Ints  # (C,), at most the class's size
    scores: Floats32  # (N,) agreements or margins, from few values, so that ties abound
    rows: Floats32  # (N, width), with zero rows and rows of any length

    def per_class(self, indices: Ints) -> list[int]:
        return np.bincount(self.class_ids[indices], minlength=len(self.quotas)).tolist()


@st.composite
def cases(draw: st.DrawFn, most_examples: int = 60) -> Case:
    classes = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, most_examples))
    class_ids = rng.integers(0, classes, size=n).astype(np.int32)
    sizes = np.bincount(class_ids, minlength=classes)
    share = draw(st.sampled_from([0.1, 0.5, 1.0]))
    quotas = rng.integers(0, np.floor(share * sizes).astype(np.int64) + 1)
    values = np.array([-1.0, -0.5, -1e-3, 0.0, 0.25, 0.25, 0.5, 1.0], np.float32)
    rows = (
        rng.normal(size=(n, draw(st.integers(2, 6)))) + 3 * rng.normal(size=(classes, 1))[class_ids]
    )
    rows *= 10.0 ** rng.uniform(-15, 15, size=(n, 1))
    rows[rng.random(n) < 0.05] = 0
    return Case(class_ids, quotas, rng.choice(values, size=n), rows.astype(np.float32))


def choose(case: Case, trim: reference.Trim, **more: int) -> Ints:
    """What herding keeps, ascending; `more` is its seed and its block size."""
    order = _core.herding(case.rows, case.scores, case.class_ids, case.quotas, trim=trim, **more)
    return np.sort(order)


def scored(
    rows: Floats32, class_ids: Ids, directions: npt.NDArray[np.float64]
) -> tuple[Floats32, Floats32]:
    """Agreement and margin (n,) of sketched gradients, as the `Scorer` writes them."""
    scores, margins = np.full((2, len(rows)), np.nan, np.float32)
    scorer = _core.Scorer(np.ascontiguousarray(directions), scores, margins, first=0)
    scorer.score(np.ascontiguousarray(rows), class_ids, np.arange(len(rows)))
    return scores, margins


def smallest_lead(rows: Floats32, k: int) -> float:
    """By how much the oracle of herding prefers its pick to the next best, at its closest call."""
    if k == 0:
        return np.inf
    kernel = reference_rules.kernel(rows)
    leads = [np.inf]
    covered, left = np.zeros(len(rows)), np.ones(len(rows), bool)
    for step, picked in enumerate(reference.herd(rows, k)):
        gain = kernel.mean(axis=1) - covered / (step + 1)
        left[picked] = False
        leads.append(float((gain[picked] - gain[left]).min(initial=np.inf)))
        covered += kernel[:, picked]
    return min(leads)
