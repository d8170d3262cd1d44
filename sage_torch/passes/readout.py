"""A ridge readout of the features: the probability of each label from all examples but its own.

The model's own probability has seen the label, and an untrained head knows nothing. Ridge
regression of the labels on the features is solved once for all examples; each is then judged by the
solution without itself, which its leverage gives in closed form (Allen 1974, PRESS). A temperature
calibrates the scores (Guo et al., ICML 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sage_torch._core as _core

Floats = NDArray[np.float64]

MOST_COMPARED = 64  # numbers of a feature that herding compares
PENALTY = 0.01  # of the ridge, in mean squares of a standardised feature
ENOUGH = 0.25  # skill from which on the readout is trusted
_IN_DOUBT = 0.25  # of the labels that are contradicted, at no skill
_CONFIDENT, _LEAST_CONFIDENT = 0.05, 20  # share of predictions, and number, that are confident
_SAMPLE = 16_384  # examples that temperature and noise estimate are taken from
_SAMPLE_BYTES = 2**26
_SCORES, _LEAST_SCORED, _MOST_SCORED = 2**18, 1_000, 8_192  # that the calibration is taken from
_SAMPLE_STREAM = 2**33  # keeps the sample apart from the reading orders
_COLDEST, _HOTTEST, _EXACT = 0.002, 50.0, 1e-3  # temperatures, and the error of their logarithm


class FeatureSums:
    """What the readout needs of the features of some examples; it does not grow with their number.

    Args:
        width: H, numbers of a feature.
        places: int64 (m,) ascending, the examples whose features are kept as a sample.
    """

    def __init__(self, width: int, places: NDArray[np.int64]) -> None:
        self.moments = np.zeros((width + 1, width + 1))  # of [h, 1]
        self.of_labels = np.zeros((0, width + 1))  # sums of [h, 1] by class id
        self.places = places
        self.sample = np.zeros((len(places), width), np.float32)

    def add(
        self, features: Tensor, class_ids: NDArray[np.int32], indices: NDArray[np.int64]
    ) -> None:
        """Add a batch.

        Args:
            features: Tensor (n, H) float32.
            class_ids: int32 (n,).
            indices: int64 (n,), the examples.

        Cost:
            About n (H + 1) (H + C) multiply-adds in float64.
        """
        wide = torch.nn.functional.pad(features.double(), (0, 1), value=1.0)
        classes = max(len(self.of_labels), int(class_ids.max()) + 1)
        ids = torch.from_numpy(class_ids.astype(np.int64)).to(wide.device)
        hot = torch.nn.functional.one_hot(ids, classes).double()
        self.moments += (wide.T @ wide).cpu().numpy()
        self.grow(classes)
        self.of_labels += (hot.T @ wide).cpu().numpy()
        if not len(self.places):
            return
        at = np.searchsorted(self.places, indices)
        at[at == len(self.places)] = 0
        is_sampled = self.places[at] == indices
        if is_sampled.any():
            rows = torch.from_numpy(np.flatnonzero(is_sampled)).to(features.device)
            self.sample[at[is_sampled]] = features[rows].cpu().numpy()

    def grow(self, classes: int) -> None:
        """Make room for the sums of so many classes."""
        new = classes - len(self.of_labels)
        if new > 0:
            self.of_labels = np.pad(self.of_labels, ((0, new), (0, 0)))

    def merge(self, other: FeatureSums, positions: NDArray[np.int32]) -> None:
        """Add the sums of other examples, which share no place of the sample.

        Args:
            other: Their sums.
            positions: int32 (C,), for each class id there the id here.
        """
        self.moments += other.moments
        seen = len(other.of_labels)
        self.grow(int(positions.max(initial=-1)) + 1)
        np.add.at(self.of_labels, positions[:seen], other.of_labels)
        self.sample += other.sample

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all numbers, by name."""
        return {"moments": self.moments, "of_labels": self.of_labels, "sample": self.sample}


def sampled(total: int, width: int, seed: int) -> NDArray[np.int64]:
    """Return the examples of the sample, ascending: all N, or a seeded draw of them."""
    size = min(total, _SAMPLE, max(1, _SAMPLE_BYTES // (4 * width)))
    drawn: NDArray[np.int64] = _core.Permutation(total, seed, _SAMPLE_STREAM).take(0, size)
    return np.sort(drawn)


@dataclass(frozen=True)
class Readout:
    """The solution of the regression, and its calibration.

    Attributes:
        mean: float64 (H,).
        scale: float64 (H,), one over the standard deviation of each feature; 0 if it is constant.
        weights: float64 (H + 1, C).
        root: float64 (H + 1, H + 1), whose rows times an example give its leverage as a square.
        axes: float64 (H, r), orthonormal: the directions in which features are longest, at most
            `MOST_COMPARED`; None where features are no longer than that.
        temperature: Scores are divided by it before the softmax.
        noise_share: Share of labels that are as if drawn at random from all classes.
        rho: Estimated share of labels that are wrong.
        skill: Share of the labels' entropy that the probabilities explain, in [0, 1].
        is_trained: Whether the model is known to predict better than chance, or nothing is known.
        sample_places: int64 (m,) ascending, the examples that the calibration was taken from.
        of_sample: float32 (m,), the probabilities of their labels.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    root: Floats
    axes: Floats | None
    temperature: float = 1.0
    noise_share: float = 0.0
    rho: float = 0.0
    skill: float = 1.0
    is_trained: bool = True
    sample_places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    of_sample: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    @classmethod
    def of(
        cls, sums: FeatureSums, class_ids: NDArray[np.int32], *, is_trained: bool = True
    ) -> Readout:
        """Solve the regression and calibrate it.

        Args:
            sums: Those of all examples, by final class ids.
            class_ids: int32 (m,), the classes of the sample.
            is_trained: As the attribute.

        Cost:
            O(H^3 + H^2 C), and O(m (H + 1) (H + C)) for the sample.
        """
        readout = cls._solved(sums)
        scores = readout.scores(sums.sample, class_ids)
        readout = replace(readout, **calibration(scores, class_ids)._asdict())
        of_sample = readout._calibrated(scores, class_ids)
        return replace(
            readout, is_trained=is_trained, sample_places=sums.places, of_sample=of_sample
        )

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return int(self.weights.shape[1])

    @classmethod
    def _solved(cls, sums: FeatureSums) -> Readout:
        moments, count = sums.moments, sums.moments[-1, -1]
        mean = moments[-1, :-1] / count
        squares = np.diag(moments)[:-1] / count
        variance = np.maximum(squares - mean**2, 0.0)
        is_constant = variance <= 1e-10 * squares
        scale = np.divide(1.0, np.sqrt(variance), out=np.zeros_like(mean), where=~is_constant)
        gram = np.zeros_like(moments)
        gram[:-1, :-1] = scale[:, None] * (moments[:-1, :-1] - count * np.outer(mean, mean)) * scale
        gram[-1, -1] = count
        gram[np.diag_indices_from(gram)] += PENALTY * count
        targets = sums.of_labels.T.copy()  # (H + 1, C)
        targets[:-1] = scale[:, None] * (targets[:-1] - mean[:, None] * targets[-1])
        root = np.linalg.inv(np.linalg.cholesky(gram))
        axes = None
        if len(mean) > MOST_COMPARED:
            axes = np.linalg.eigh(moments[:-1, :-1])[1][:, -MOST_COMPARED:]
        return cls(mean, scale, root.T @ (root @ targets), root, axes)

    def scores(
        self, features: NDArray[np.float32], class_ids: NDArray[np.int32], *, is_new: bool = False
    ) -> Floats:
        """Return what the regression without each example says of it, (n, C).

        Args:
            features: float32 (n, H).
            class_ids: int32 (n,), whose targets are taken out again.
            is_new: Whether the examples are not in the sums.

        Reference:
            Allen, "The relationship between variable selection and data augmentation and a method
            for prediction", Technometrics 1974.
        """
        wide = np.ones((len(features), len(self.mean) + 1))
        wide[:, :-1] = (features - self.mean) * self.scale
        if is_new:
            return np.asarray(wide @ self.weights)
        both = torch.from_numpy(wide) @ torch.from_numpy(np.hstack([self.weights, self.root.T]))
        scores = both[:, : self.weights.shape[1]].numpy()
        leverage = both[:, self.weights.shape[1] :].square().sum(1).numpy()
        scores[np.arange(len(scores)), class_ids] -= leverage
        left = np.maximum(1.0 - leverage, 1e-6)
        without: Floats = scores / left[:, None]
        return without

    @property
    def compared(self) -> int:
        """Number r of a feature's numbers that herding compares."""
        return len(self.mean) if self.axes is None else int(self.axes.shape[1])

    def reduced(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what herding compares of some features, float32 (n, r), at length 1 or 0."""
        rows = features.astype(np.float64)
        if self.axes is not None:
            rows = rows @ self.axes
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: NDArray[np.float32] = (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)
        return unit

    def probabilities(
        self, features: NDArray[np.float32], class_ids: NDArray[np.int32], *, is_new: bool = False
    ) -> NDArray[np.float32]:
        """Return the calibrated probability of each label, float32 (n,); arguments as `scores`."""
        return self._calibrated(self.scores(features, class_ids, is_new=is_new), class_ids)

    def _calibrated(self, scores: Floats, class_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        clean = _of_labels(scores / self.temperature, class_ids)
        with_noise = (1.0 - self.noise_share) * clean + self.noise_share / self.classes
        return np.minimum(with_noise, 1.0).astype(np.float32)


class Calibration(NamedTuple):
    """How scores become probabilities: `(1 - noise_share) softmax(s / T) + noise_share / C`."""

    temperature: float
    noise_share: float
    rho: float  # estimated share of labels that are wrong
    skill: float  # share of the entropy log C that is explained


def calibration(scores: Floats, class_ids: NDArray[np.int32]) -> Calibration:
    """Return the temperature and the share of random labels of greatest likelihood.

    A softmax is sure of nothing but what it has seen to be sure: where labels are wrong at random,
    it is contradicted more often than it says, however confident it is, and a share of random
    labels explains the data better. Where it does not, by the Bayesian information criterion, no
    label is taken to be random.

    That share is too low where the regression has the wrong form; the share of the most confident
    predictions that the label contradicts is too high where the data are hard. The estimate of
    wrong labels, `rho`, is their geometric mean. A readout that knows little cannot tell the two
    apart: there `rho` is up to half of the share that is contradicted.

    Args:
        scores: float64 (n, C), of the regression without each example.
        class_ids: int32 (n,).

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Schwarz, "Estimating the
        Dimension of a Model", Annals of Statistics 1978.
    """
    # The sample is in the order of the data set, which may be sorted: every so many of it.
    count = min(max(_LEAST_SCORED, _SCORES // scores.shape[1]), _MOST_SCORED)
    some = slice(0, None, -(-len(scores) // count))
    scores, class_ids = scores[some], class_ids[some]
    count, chance = len(scores), 1.0 / scores.shape[1]

    def clean(log_t: float) -> Floats:
        return _of_labels(scores * np.exp(-log_t), class_ids)

    def alone(log_t: float) -> float:
        return _loss(clean(log_t), 0.0, chance)

    def mixed(log_t: float) -> float:
        found = clean(log_t)
        return _loss(found, _share_of_chance(found, chance), chance)

    without, both = _least(alone), _least(mixed)
    log_t, share = without, 0.0
    if count * (alone(without) - mixed(both)) > 0.5 * np.log(count):
        log_t, share = both, _share_of_chance(clean(both), chance)
    skill = max(0.0, 1.0 - _loss(clean(log_t), share, chance) / np.log(1.0 / chance))
    against = contradicted(scores, class_ids, float(np.exp(without)))
    at_least = _IN_DOUBT * against * max(0.0, 1.0 - skill / ENOUGH)
    rho = float(np.sqrt(max(share * (1.0 - chance), at_least) * against))
    return Calibration(float(np.exp(log_t)), share, rho, float(skill))


def contradicted(scores: Floats, class_ids: NDArray[np.int32], temperature: float) -> float:
    """Return the share of the most confident predictions that the label contradicts."""
    sums = np.exp((scores - scores.max(1, keepdims=True)) / temperature).sum(1)  # 1: certain
    count = min(len(scores), max(_LEAST_CONFIDENT, round(_CONFIDENT * len(scores))))
    some = np.argsort(sums, kind="stable")[:count]
    return float((scores[some].argmax(1) != class_ids[some]).mean())


def _share_of_chance(clean: Floats, chance: float) -> float:
    """Return the share r of greatest likelihood in `(1 - r) p + r / C`, by bisection.

    The log-likelihood is concave in r; its slope has one zero, or none above 0.
    """

    def slope(share: float) -> float:
        return float(((chance - clean) / (clean + share * (chance - clean))).sum())

    low, high = 0.0, 1.0 - 1e-6
    if slope(1e-9) <= 0:
        return 0.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2


def _loss(clean: Floats, share: float, chance: float) -> float:
    return -float(np.log(np.maximum((1.0 - share) * clean + share * chance, 1e-30)).mean())


def _least(of: Callable[[float], float]) -> float:
    """Return the log T within the bounds at which a function is least, by golden section."""
    low, high = np.log(_COLDEST), np.log(_HOTTEST)
    golden = (5**0.5 - 1) / 2
    inner, outer = high - golden * (high - low), low + golden * (high - low)
    of_inner, of_outer = of(inner), of(outer)
    while high - low > _EXACT:
        if of_inner < of_outer:
            high, outer, of_outer = outer, inner, of_inner
            inner = high - golden * (high - low)
            of_inner = of(inner)
        else:
            low, inner, of_inner = inner, outer, of_outer
            outer = low + golden * (high - low)
            of_outer = of(outer)
    return float((low + high) / 2)


def _of_labels(scores: Floats, class_ids: NDArray[np.int32]) -> Floats:
    """Return the softmax of each row at its label (n,)."""
    shifted = scores - scores.max(1, keepdims=True)
    of_label = shifted[np.arange(len(scores)), class_ids]
    found: Floats = np.exp(of_label) / np.exp(shifted).sum(1)
    return found
