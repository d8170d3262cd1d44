"""A ridge readout of the features: the probability of each label from all examples but its own.

The model's own probability has seen the label, and an untrained head knows nothing. Ridge
regression of the labels on the features is solved once for all examples; each is then judged by the
solution without itself, which its leverage gives in closed form (Allen 1974, PRESS).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sage_torch._core as _core
from sage_torch.passes.calibration import (
    NOT_CALIBRATED,
    Calibration,
    FirstReading,
    Judged,
    calibrated,
)

Floats = NDArray[np.float64]

MOST_COMPARED = 64  # numbers of a feature that herding compares
PENALTY = 0.01  # of the ridge, in mean squares of a standardised feature
_SAMPLE = 16_384  # examples that the calibration is taken from
_SAMPLE_BYTES = 2**26
_SAMPLE_STREAM = 2**33  # keeps the sample apart from the reading orders


class FeatureSums:
    """What the readout needs of the features of some examples; it does not grow with their number.

    Sums stay on the device of the features.

    Args:
        width: H, numbers of a feature.
        places: int64 (m,) ascending, those of the examples whose features are kept as a sample.
    """

    def __init__(self, width: int, places: NDArray[np.int64]) -> None:
        self._moments = torch.zeros((width + 1, width + 1), dtype=torch.float64, device="cpu")
        self._of_labels = self._moments[:0].clone()
        self.places = places
        self.sample = np.zeros((len(places), width), np.float32)

    @property
    def moments(self) -> Floats:
        """Sum of [h, 1] [h, 1]', float64 (H + 1, H + 1)."""
        return np.asarray(self._moments.cpu().numpy())

    @property
    def of_labels(self) -> Floats:
        """Sums of [h, 1] by class id, float64 (C, H + 1), of the classes so far."""
        return np.asarray(self._of_labels.cpu().numpy())

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
        self.to(features.device)
        wide = torch.nn.functional.pad(features.double(), (0, 1), value=1.0)
        self._grow(int(class_ids.max()) + 1)
        ids = torch.from_numpy(class_ids.astype(np.int64)).to(wide.device)
        hot = torch.nn.functional.one_hot(ids, len(self._of_labels)).double()
        self._moments += wide.T @ wide
        self._of_labels += hot.T @ wide
        at = np.searchsorted(self.places, indices)
        is_sampled = np.isin(indices, self.places)
        if is_sampled.any():
            rows = torch.from_numpy(np.flatnonzero(is_sampled)).to(features.device)
            self.sample[at[is_sampled]] = features[rows].cpu().numpy()

    def merge(self, other: FeatureSums, positions: NDArray[np.int32] | None = None) -> None:
        """Add the sums of other examples, whose sample is a part of this one.

        Args:
            other: Their sums.
            positions: int32 (C,), for each class id there the id here; None if they are the same.
        """
        seen = len(other._of_labels)
        ids = np.arange(seen) if positions is None else positions[:seen].astype(np.int64)
        self._grow(int(ids.max(initial=-1)) + 1)
        self._moments += other._moments.to(self._moments.device)
        there = torch.from_numpy(ids).to(self._of_labels.device)
        self._of_labels.index_add_(0, there, other._of_labels.to(there.device))
        self.sample[np.searchsorted(self.places, other.places)] = other.sample

    def forget(self, weight: float) -> None:
        """Let what was added so far count less."""
        self._moments *= weight
        self._of_labels *= weight

    def to(self, device: torch.device | str) -> FeatureSums:
        """Move the sums to a device; return them."""
        self._moments, self._of_labels = self._moments.to(device), self._of_labels.to(device)
        return self

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all numbers, by name."""
        return {"moments": self.moments, "of_labels": self.of_labels, "sample": self.sample}

    @classmethod
    def of_state(cls, places: NDArray[np.int64], state: dict[str, NDArray[Any]]) -> FeatureSums:
        """Return the sums that gave a state.

        Raises:
            ValueError: It has another form, or numbers that are not finite.
        """
        moments, of_labels, sample = (state[n] for n in ("moments", "of_labels", "sample"))
        made = cls(len(moments) - 1, places)
        shapes = (
            (moments, made.moments.shape, np.float64),
            (of_labels, (len(of_labels), len(moments)), np.float64),
            (sample, made.sample.shape, np.float32),
        )
        for array, shape, dtype in shapes:
            if array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
                raise ValueError(
                    f"expected finite sums of features of shape {shape}, got {array.shape}"
                )
        made._moments, made._of_labels = (
            torch.from_numpy(array.copy()) for array in (moments, of_labels)
        )
        made.sample[:] = sample
        return made

    def _grow(self, classes: int) -> None:
        new = classes - len(self._of_labels)
        if new > 0:
            self._of_labels = torch.nn.functional.pad(self._of_labels, (0, 0, 0, new))


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
        calibration: How scores become probabilities, and what they say of the data.
        sample_places: int64 (m,) ascending, the examples that the calibration was taken from.
        of_sample: What is known of their labels.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    root: Floats
    axes: Floats | None
    calibration: Calibration
    sample_places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    of_sample: Judged = field(default_factory=lambda: Judged.empty(0))

    @classmethod
    def of(
        cls,
        sums: FeatureSums,
        class_ids: NDArray[np.int32],
        *,
        is_trained: bool = True,
        own_loss: float | None = None,
        first_reading: FirstReading | None = None,
    ) -> Readout:
        """Solve the regression and calibrate it.

        Args:
            sums: Those of all examples, by final class ids.
            class_ids: int32 (m,), the classes of the sample.
            is_trained: Whether the model predicts better than chance, or nothing is known of that.
            own_loss: As `calibrated`.
            first_reading: What the calibration said after the first epoch, if it was asked.

        Cost:
            O(H^3 + H^2 C), and O(m (H + 1) (H + C)) for the sample.
        """
        solved = cls._solved(sums)
        scores = solved.scores(sums.sample, class_ids)
        now = calibrated(scores, class_ids, is_trained=is_trained, own_loss=own_loss)
        fitted = now.after(first_reading)
        of_sample = fitted.judged(scores, class_ids)
        return replace(solved, calibration=fitted, sample_places=sums.places, of_sample=of_sample)

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
        return cls(mean, scale, root.T @ (root @ targets), root, axes, NOT_CALIBRATED)

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

    def judged(
        self,
        features: NDArray[np.float32],
        class_ids: NDArray[np.int32],
        own: NDArray[np.float32] | None = None,
        *,
        is_new: bool = False,
    ) -> Judged:
        """Return what is known of the labels of n examples.

        Arguments as `scores`, and as `Calibration.judged`.
        """
        scores = self.scores(features, class_ids, is_new=is_new)
        return self.calibration.judged(scores, class_ids, own)
