"""The method in plain float64 NumPy: slow, small, and written from the papers alone.

Every test of the fast code compares with this file. It reads as the specification:

* Frequent Directions: Liberty 2013; Ghashami, Liberty, Phillips, Woodruff, SIAM J. Comput. 2016.
* Consensus and agreement: Jha & Ahmadi-Asl, arXiv 2510.02470 (SAGE).
* Kernel herding: Chen, Welling, Smola, UAI 2010.

Axes: N examples, d gradient length, l sketch rows, C classes. Numbers are float64, indices int64.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Basis = Literal["weighted", "orthonormal"]
Trim = float | Literal["negative"] | None

NULL_SHARE = 1e-12
"""Directions with at most this share of the largest squared singular value count as absent."""


class FrequentDirections:
    """A sketch S (l, d) of the rows A seen so far: 0 <= |Ax|^2 - |Sx|^2 <= shrinkage, all unit x.

    Rows wait in a buffer; each time it holds `block` of them, they are shrunk into the sketch.
    """

    def __init__(self, sketch_size: int, dim: int, block: int) -> None:
        self.sketch_size, self.dim, self.block = sketch_size, dim, block
        self.rows_seen = 0
        self.squared_norm = 0.0
        self.change_of_basis: Floats = np.zeros((sketch_size, sketch_size))
        """T = V_new V_old^T of the last shrink: moves sketch coordinates to the new basis."""
        self._sigma: Floats = np.zeros(sketch_size)
        self._basis: Floats = np.zeros((sketch_size, dim))  # orthonormal rows; 0 where sigma is 0
        self._shrinkage = 0.0
        self._pending: Floats = np.zeros((0, dim))

    def update(self, rows: npt.ArrayLike) -> None:
        """Append rows (n, d); how a stream is cut into batches makes no difference."""
        rows = np.asarray(rows, dtype=np.float64)
        self.rows_seen += len(rows)
        self.squared_norm += float(np.sum(rows**2))
        self._pending = np.concatenate([self._pending, rows])
        while len(self._pending) >= self.block:
            full, self._pending = self._pending[: self.block], self._pending[self.block :]
            self._replace(*self._shrunk(full))

    def merge(self, other: FrequentDirections) -> None:
        """Stack both sketches and the rows still pending in either, and shrink once."""
        stacked = np.concatenate([self._pending, other._sketch(), other._pending])
        sigma, basis, shrinkage = self._shrunk(stacked)
        self._replace(sigma, basis, shrinkage + other._shrinkage)
        self._pending = np.zeros((0, self.dim))
        self.rows_seen += other.rows_seen
        self.squared_norm += other.squared_norm

    def matrix(self) -> Floats:
        """S (l, d) of the whole stream, pending rows included; changes nothing."""
        sigma, basis, _ = self._read()
        return sigma[:, None] * basis

    def project(self, rows: npt.ArrayLike, basis: Basis = "weighted") -> Floats:
        """Sketched gradients z (n, l): S g ("weighted") or V g ("orthonormal")."""
        sigma, directions, _ = self._read()
        z: Floats = np.asarray(rows, dtype=np.float64) @ directions.T  # (n, d) @ (d, l) -> (n, l)
        return z * sigma if basis == "weighted" else z

    @property
    def singular_values(self) -> Floats:
        return self._read()[0]

    @property
    def shrinkage(self) -> float:
        """Delta, the sum of everything subtracted: the bound on the error in any direction."""
        return self._read()[2]

    def _shrunk(self, rows: Floats) -> tuple[Floats, Floats, float]:
        """Singular values, basis and shrinkage after [S; rows] is cut back to l rows."""
        size = self.sketch_size
        _, values, directions = np.linalg.svd(
            np.concatenate([self._sketch(), rows]), full_matrices=False
        )
        energy = np.zeros(max(len(values), size + 1))  # lambda, descending, 0 where the rank ends
        energy[: len(values)] = values**2
        delta = float(energy[size])  # lambda_{l+1}
        null = energy[:size] <= NULL_SHARE * energy[0]
        sigma = np.sqrt(np.where(null, 0.0, energy[:size] - delta))
        basis = np.zeros((size, self.dim))
        basis[: min(size, len(directions))] = directions[:size]
        basis[sigma == 0] = 0.0
        lost = max([delta, *energy[:size][null]])
        return sigma, basis, self._shrinkage + lost

    def _replace(self, sigma: Floats, basis: Floats, shrinkage: float) -> None:
        self.change_of_basis = basis @ self._basis.T
        self._sigma, self._basis, self._shrinkage = sigma, basis, shrinkage

    def _read(self) -> tuple[Floats, Floats, float]:
        """The state as it would be if the pending rows were shrunk in now."""
        if len(self._pending) == 0:
            return self._sigma, self._basis, self._shrinkage
        return self._shrunk(self._pending)

    def _sketch(self) -> Floats:
        return self._sigma[:, None] * self._basis


def unit(z: npt.ArrayLike) -> Floats:
    """Rows divided by their length; a zero row stays zero."""
    z = np.asarray(z, dtype=np.float64)
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    units: Floats = z / np.where(length > 0, length, 1.0)
    return units


def consensus(z: npt.ArrayLike, class_ids: Ints, classes: int) -> Floats:
    """u_c (C, l): the unit mean of the unit sketched gradients of class c; 0 for an empty class."""
    total = np.zeros((classes, np.shape(z)[1]))
    np.add.at(total, class_ids, unit(z))
    return unit(total)


def agreement(z: npt.ArrayLike, class_ids: Ints, directions: Floats) -> Floats:
    """a_i = <z_i / |z_i|, u_class(i)> (n,), in [-1, 1]."""
    scores: Floats = np.einsum("nl,nl->n", unit(z), directions[class_ids])
    return scores


def margin(z: npt.ArrayLike, class_ids: Ints, directions: Floats) -> Floats:
    """m_i = a_i - o_i / 2 (n,), o_i = max(0, -min over other classes b of <z_i / |z_i|, u_b>).

    Not of a paper: how far an example sides with its own class rather than opposes another, as one
    does whose label should be that other class (benchmarks/results/trim.json).
    """
    with_all = unit(z) @ directions.T  # (n, C)
    own = with_all[np.arange(len(with_all)), class_ids]
    with_all[np.arange(len(with_all)), class_ids] = 0.0
    margins: Floats = own - np.maximum(0.0, -with_all.min(axis=1)) / 2
    return margins


def class_quotas(counts: npt.ArrayLike, budget: int, mode: str = "proportional") -> Ints:
    """How many examples each class keeps (C,): sums to `budget`, never above the class's count.

    "proportional": budget * count / N by largest remainder. "equal": the same number a class; what
    a short class cannot use goes to the others. Ties go to the lower class index.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if not 0 <= budget <= counts.sum():
        raise ValueError(f"expected a budget of 0 to {counts.sum()} examples, got {budget}")
    if mode == "proportional":
        if budget == 0:
            return np.zeros_like(counts)
        quotas, remainder = np.divmod(budget * counts, counts.sum())
        first = np.argsort(-remainder, kind="stable")[: budget - quotas.sum()]
        quotas[first] += 1
        return quotas
    if mode != "equal":
        raise ValueError(f'expected mode "proportional" or "equal", got {mode!r}')
    quotas = np.zeros_like(counts)
    taking = np.arange(len(counts))  # classes not yet used up
    while len(taking):
        share, extra = divmod(int(budget - quotas.sum()), len(taking))
        wanted = share + (np.arange(len(taking)) < extra)
        short = counts[taking] < wanted
        if not short.any():
            quotas[taking] = wanted
            break
        quotas[taking[short]] = counts[taking[short]]
        taking = taking[~short]
    return quotas


def top_k(scores: npt.ArrayLike, class_ids: Ints, quotas: Ints) -> Ints:
    """Indices (k,) of each class's highest scores, ascending; the lower index wins a tie."""
    scores = np.asarray(scores, dtype=np.float64)
    kept = [np.zeros(0, dtype=np.int64)]
    for class_id, quota in enumerate(quotas):
        members = np.flatnonzero(class_ids == class_id)
        kept.append(members[np.argsort(-scores[members], kind="stable")[:quota]])
    return np.sort(np.concatenate(kept))


def bandwidth(z: npt.ArrayLike) -> float:
    """tau: the 10 % quantile of the distances between unit rows.

    Where duplicates make it 0, the mean distance; where that is 0 too or there is no pair, 1.
    """
    distances = np.sort(_distances(z)[np.triu_indices(len(np.asarray(z)), k=1)])
    if len(distances) == 0:
        return 1.0
    tenth = float(distances[int(0.1 * (len(distances) - 1))])
    return tenth or float(distances.mean()) or 1.0


def trimmed(margins: npt.ArrayLike, quota: int, trim: Trim) -> Ints:
    """Positions in one class left after the trim, ascending; never fewer than `quota` of them.

    "negative" drops margins < 0; a share s in [0, 1) drops the floor(s n) lowest; None nothing.
    Examples leave from the lowest margin up, and of equals the higher index leaves first.
    """
    scores = np.asarray(margins, dtype=np.float64)
    if trim is None:
        left = len(scores)
    elif isinstance(trim, str):
        left = int(np.sum(scores >= 0))
    else:
        left = len(scores) - int(trim * len(scores))
    most_agreeing = np.argsort(-scores, kind="stable")
    return np.sort(most_agreeing[: max(left, quota)])


def herd(z: npt.ArrayLike, k: int, masses: Floats | None = None) -> Ints:
    """k rows whose mean follows the mean of all, in the order of picking (greedy kernel herding).

    K_ij = exp(-|z_i - z_j|^2 / (2 tau^2)) on unit rows, mu_j the mean of K_j over all rows, each
    with its mass if there are masses; step t picks
    argmax_j mu_j - (sum of K_js over the t picked) / (t + 1); ties by index.
    """
    kernel = np.exp(-(_distances(z) ** 2) / (2 * bandwidth(z) ** 2))
    mean = kernel.mean(axis=1) if masses is None else kernel @ masses / masses.sum()
    covered = np.zeros(len(kernel))
    picked: list[int] = []
    for step in range(k):
        gain = mean - covered / (step + 1)
        gain[picked] = -np.inf
        picked.append(int(np.argmax(gain)))
        covered += kernel[:, picked[-1]]
    return np.array(picked, dtype=np.int64)


def herding(
    z: npt.ArrayLike,
    margins: npt.ArrayLike,
    class_ids: Ints,
    quotas: Ints,
    trim: Trim = "negative",
) -> Ints:
    """Trim each class, then herd its quota from what is left; indices (k,), ascending.

    z (N, l) in orthonormal coordinates. One block a class, so for classes of at most 4,096; tau and
    mu are those of the rows left after the trim, tau over all pairs of them.
    """
    z, scores = np.asarray(z, dtype=np.float64), np.asarray(margins, dtype=np.float64)
    kept = [np.zeros(0, dtype=np.int64)]
    for class_id, quota in enumerate(quotas):
        if quota == 0:
            continue
        members = np.flatnonzero(class_ids == class_id)
        left = members[trimmed(scores[members], int(quota), trim)]
        kept.append(left[herd(z[left], int(quota))])
    return np.sort(np.concatenate(kept))


def _distances(z: npt.ArrayLike) -> Floats:
    """Distances (n, n) between unit rows, by differences: equal rows are exactly 0 apart."""
    rows = unit(z)
    distances: Floats = np.array([np.linalg.norm(rows - row, axis=1) for row in rows])
    return distances.reshape(len(rows), len(rows))
