"""Ideas that were tried against the shipped rules, on validation data: what might do better?

`benchmarks/quality/quality.py --split validation --rules "sage;variant: ..."` runs them; what came of it is
`benchmarks/results/validation.jsonl` and a table in RESULTS.md. None of them is in the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import sage_torch._core as _core
from benchmarks.quality.trials import Indices, Problem
from sage_torch import FrequentDirections
from sage_torch.gradients import ProjectedGradients

Floats = NDArray[np.float64]
_READ_AT_ONCE = 256
_BANDWIDTH_ROWS = 512


@dataclass(frozen=True)
class Known:
    """What two passes over the pool tell of each example."""

    labels: Indices
    weighted: Floats  # (N, l) sketched gradients S g
    orthonormal: Floats  # (N, l) sketched gradients V g
    agreement: Floats  # (N,) in the weighted basis
    norms: Floats  # (N,) of the compressed gradients
    features: Floats  # (N, h) inputs of the last layer
    right: Floats  # (N,) probability of the label

    @property
    def untrimmed(self) -> NDArray[np.bool_]:
        """Agreement of at least 0."""
        return self.agreement >= 0


def look(model: nn.Module, problem: Problem, seed: int, sketch_size: int = 64) -> Known:
    """Take the two passes, and the last layer's inputs and outputs beside them."""
    model.eval()
    gradients = ProjectedGradients(model, seed=seed)
    count = len(problem)
    parts = [slice(start, start + _READ_AT_ONCE) for start in range(0, count, _READ_AT_ONCE)]
    order = torch.from_numpy(_core.Permutation(count, seed, 7).take(0, count))
    sketch: FrequentDirections | None = None
    for part in parts:
        rows = gradients((problem.images[order[part]], problem.labels[order[part]]))
        sketch = sketch or FrequentDirections(sketch_size, rows.shape[1], device=rows.device)
        sketch.update(rows)
    assert sketch is not None
    weighted, norms, features, right = [], [], [], []
    for part in parts:
        images, labels = problem.images[part], problem.labels[part]
        rows = gradients((images, labels))
        weighted.append(sketch.project(rows).cpu().numpy())
        norms.append(rows.norm(dim=1).cpu().numpy())
        with torch.no_grad():
            inputs = model[:-1](images)  # type: ignore[index]
            outputs = model[-1](inputs).softmax(1)  # type: ignore[index]
        features.append(inputs.cpu().numpy())
        right.append(outputs.gather(1, labels[:, None])[:, 0].cpu().numpy())
    labels = problem.labels.cpu().numpy()
    rows = np.concatenate(weighted)
    consensus = _core.Consensus(problem.classes, sketch_size)
    consensus.add(rows, labels.astype(np.int32))
    values = sketch.singular_values()
    return Known(
        labels=labels,
        weighted=rows.astype(np.float64),
        orthonormal=rows / np.where(values > 0, values, 1.0),
        agreement=_core.agreement(rows, labels.astype(np.int32), consensus.directions()),
        norms=np.concatenate(norms).astype(np.float64),
        features=np.concatenate(features).astype(np.float64),
        right=np.concatenate(right).astype(np.float64),
    )


def herd(known: Known, quotas: Indices, rows: Floats, masses: Floats, trim: bool = True) -> Indices:
    """Kernel herding of each class toward the mean with the given masses (N,)."""
    parts = []
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(known.labels == label)
        if trim:
            untrimmed = members[known.untrimmed[members]]
            members = untrimmed if len(untrimmed) >= quota else members
        kernel = _kernel(rows[members])
        mean = kernel @ (masses[members] / masses[members].sum()).astype(np.float32)
        covered = np.zeros(len(members), np.float32)
        is_picked = np.zeros(len(members), bool)
        for step in range(quota):
            gain = mean - covered / (step + 1)
            gain[is_picked] = -np.inf
            place = int(gain.argmax())
            is_picked[place] = True
            covered += kernel[place]
        parts.append(members[is_picked])
    return np.sort(np.concatenate(parts))


def draw_hard(
    known: Known, quotas: Indices, power: float, progress: float, anneal: float, random: Any
) -> Indices:
    """Draw from the untrimmed of each class in proportion to gradient norm to a power.

    The power falls to 0 while progress goes from 0 to `anneal`.
    """
    power *= max(0.0, 1 - progress / anneal) if anneal else 1.0
    parts = []
    for label, quota in enumerate(quotas):
        members = np.flatnonzero((known.labels == label) & known.untrimmed)
        if len(members) < quota:
            members = np.flatnonzero(known.labels == label)
        chance = known.norms[members] ** power
        parts.append(random.choice(members, quota, replace=False, p=chance / chance.sum()))
    return np.sort(np.concatenate(parts))


def all_untrimmed(known: Known, *_: Any) -> Indices:
    """Return all data but the trimmed."""
    return np.flatnonzero(known.untrimmed)


def _units(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _kernel(rows: Floats, quantile: float = 0.1) -> NDArray[np.float32]:
    units = _units(rows)
    squared = np.maximum(0, (units**2).sum(1)[:, None] + (units**2).sum(1) - 2 * units @ units.T)
    some = np.random.default_rng(0).permutation(len(rows))[:_BANDWIDTH_ROWS]
    pairs = np.triu_indices(len(some), 1)
    width = float(np.quantile(np.sqrt(squared[np.ix_(some, some)][pairs]), quantile)) or 1.0
    return np.exp(-squared / (2 * width**2)).astype(np.float32)


def _toward_norms(known: Known, quotas: Indices, power: float | None = None) -> Indices:
    return herd(known, quotas, known.orthonormal, known.norms ** _power(known, quotas, power))


def _of_features(known: Known, quotas: Indices) -> Indices:
    return herd(known, quotas, known.features, np.ones(len(known.labels)))


def _of_both(known: Known, quotas: Indices, power: float | None = None) -> Indices:
    both = np.hstack([_units(known.orthonormal), _units(known.features)])
    return herd(known, quotas, both, known.norms ** _power(known, quotas, power))


def _learnt_less(known: Known, quotas: Indices, power: float | None = None) -> Indices:
    """Those with less than the mean norm count less; no example counts more than another."""
    masses = np.ones(len(known.labels))
    for label in range(len(quotas)):
        members = known.labels == label
        masses[members] = np.minimum(1.0, known.norms[members] / known.norms[members].mean())
    return herd(known, quotas, known.orthonormal, masses ** _power(known, quotas, power))


def _power(known: Known, quotas: Indices, power: float | None) -> float:
    """The share kept, if no power is given: the larger the budget, the harder the examples."""
    return float(quotas.sum() / len(known.labels)) if power is None else power


# Fixed: (known, quotas) -> indices.
FIXED: dict[str, Callable[[Known, Indices], Indices]] = {
    "variant: herding toward norms ** 0.25": partial(_toward_norms, power=0.25),
    "variant: herding toward norms ** 0.5": partial(_toward_norms, power=0.5),
    "variant: herding toward norms ** keep": _toward_norms,
    "variant: herding, learnt ones less ** keep": _learnt_less,
    "variant: herding, learnt ones less ** 0.5": partial(_learnt_less, power=0.5),
    "variant: herding of features": _of_features,
    "variant: herding of sketch and features": partial(_of_both, power=0.0),
    "variant: herding of both toward norms ** 0.25": partial(_of_both, power=0.25),
    "variant: herding of both toward norms ** keep": _of_both,
}
# Every epoch anew: (known, quotas, progress in [0, 1], random) -> indices.
DYNAMIC: dict[str, Callable[..., Indices]] = {
    "variant: all untrimmed": all_untrimmed,
    "variant: hard draws ** 0.5": lambda known, quotas, progress, random: draw_hard(
        known, quotas, 0.5, progress, 0.0, random
    ),
    "variant: hard draws ** 1": lambda known, quotas, progress, random: draw_hard(
        known, quotas, 1.0, progress, 0.0, random
    ),
    "variant: hard draws ** 1, annealed": lambda known, quotas, progress, random: draw_hard(
        known, quotas, 1.0, progress, 1.0, random
    ),
}
