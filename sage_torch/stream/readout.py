"""The readout of a stream: each label is judged by what came before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sage_torch.passes.calibration import Calibration
from sage_torch.passes.rating import Rating
from sage_torch.passes.readout import FeatureSums, Readout

_SAMPLE = 2_048  # recent examples that the calibration is taken from
_OFTEN, _RARELY = 512, 0.1  # examples between two solutions: at least so many, or so much of all

_OF_CALIBRATION = ("temperature", "noise_share", "rho", "skill", "trust")


class OnlineReadout:
    """Sums of features that slowly forget, solved anew as they grow.

    Args:
        width: H, numbers of a feature.

    Cost:
        Per example about H (H + C) multiply-adds; O(H^3) each time it is solved. Memory: 2,048
        features, and 8 H (H + C) bytes.
    """

    def __init__(self, width: int) -> None:
        self._sums = FeatureSums(width, np.empty(0, np.int64))
        self._features = np.zeros((_SAMPLE, width), np.float32)  # a ring
        self._ids = np.zeros(_SAMPLE, np.int32)
        self._seen, self._solved_at = 0, 0
        self._rating: tuple[Readout, Rating] | None = None
        # By class, whose draws before and after a solution are to compare.
        self._mean_masses = np.ones(0, np.float32)

    def __call__(
        self, features: Tensor, class_ids: NDArray[np.int32], weight: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Judge a batch, then learn from it.

        Args:
            features: Tensor (n, H) float32.
            class_ids: int32 (n,).
            weight: What earlier examples count from now on.

        Returns:
            Quality (n,), below 0 where a label is probably wrong, and masses (n,), 1 on average in
            each class; NaN for classes that are too new. None before the first solution.
        """
        known = self._judged(features.cpu().numpy(), class_ids)
        self._learn(features, class_ids, weight)
        return known

    def _judged(
        self, features: NDArray[np.float32], class_ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        if self._rating is None:
            return None
        readout, rating = self._rating
        quality, masses = np.full((2, len(features)), np.nan, np.float32)
        is_known = class_ids < readout.classes
        if is_known.any():
            ids = class_ids[is_known]
            judged = readout.judged(features[is_known], ids, is_new=True)
            quality[is_known] = rating.quality(judged, np.zeros_like(ids))
            masses[is_known] = rating.masses(judged, np.zeros_like(ids)) / self._mean_masses[ids]
        return quality, masses

    def _learn(self, features: Tensor, class_ids: NDArray[np.int32], weight: float) -> None:
        n, sums = len(features), self._sums
        sums.forget(weight)
        sums.add(features, class_ids, np.arange(n))
        last = slice(max(0, n - _SAMPLE), n)
        places = (self._seen + np.arange(n)[last]) % _SAMPLE
        self._features[places] = features[last].cpu().numpy()
        self._ids[places] = class_ids[last]
        self._seen += n
        if self._seen - self._solved_at >= max(_OFTEN, _RARELY * self._solved_at):
            self._solve()

    def _solve(self) -> None:
        self._solved_at, self._rating = self._seen, None
        if len(self._sums.of_labels) < 2:
            return
        there = slice(0, min(self._seen, _SAMPLE))
        state = self._sums.state() | {"sample": self._features[there]}
        whole = FeatureSums.of_state(np.arange(there.stop), state)
        readout = Readout.of(whole, self._ids[there])
        groups = np.zeros(there.stop, np.int32)
        rating = Rating.of(readout, groups, np.ones(1), has_budget=False)
        ids = self._ids[there]
        counts = np.bincount(ids, minlength=readout.classes)
        masses = rating.masses(readout.of_sample, groups)
        sums = np.bincount(ids, masses, minlength=readout.classes)
        means = np.divide(sums, counts, out=np.ones(len(sums)), where=counts > 0)
        self._mean_masses = means.astype(np.float32)
        self._rating = readout, rating

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers from which `load_state_dict` resumes exactly."""
        arrays: dict[str, NDArray[Any]] = {
            "moments": self._sums.moments,
            "of_labels": self._sums.of_labels,
            "features": self._features,
            "ids": self._ids,
        }
        found: dict[str, Any] = {n: torch.from_numpy(each.copy()) for n, each in arrays.items()}
        rating: dict[str, Any] | None = None
        if self._rating is not None:
            readout, of = self._rating
            arrays = {name: getattr(readout, name) for name in ("mean", "scale", "weights")}
            arrays |= {"mistaken": readout.calibration.mistaken, "mean_masses": self._mean_masses}
            rating = {n: torch.from_numpy(each.copy()) for n, each in arrays.items()}
            rating |= {name: getattr(readout.calibration, name) for name in _OF_CALIBRATION}
            rating["noise"] = float(of.noise[0])
        return found | {"seen": self._seen, "solved_at": self._solved_at, "rating": rating}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> OnlineReadout:
        """Return the readout that gave a state.

        Raises:
            ValueError: It has another form.
        """
        width = state["features"].shape[1]
        made = cls(width)
        sums = {name: state[name].numpy() for name in ("moments", "of_labels")}
        made._sums = FeatureSums.of_state(made._sums.places, sums | {"sample": made._sums.sample})
        for name, ours in (("features", made._features), ("ids", made._ids)):
            found = state[name].numpy()
            if found.shape != ours.shape or found.dtype != ours.dtype:
                raise ValueError(f"expected {name} of shape {ours.shape}, got {found.shape}")
            ours[:] = found
        made._seen, made._solved_at = int(state["seen"]), int(state["solved_at"])
        rating = state["rating"]
        if rating is not None:
            mean, scale, weights, mistaken, made._mean_masses = (
                rating[name].numpy().copy()
                for name in ("mean", "scale", "weights", "mistaken", "mean_masses")
            )
            numbers = {name: float(rating[name]) for name in _OF_CALIBRATION}
            root = np.empty((0, 0))  # only examples that the sums hold need it
            known = Calibration(mistaken=mistaken, flips=None, **numbers)
            readout = Readout(mean, scale, weights, root, None, known)
            of = Rating.of(readout, np.empty(0, np.int32), np.ones(1), has_budget=False)
            made._rating = readout, replace(of, noise=np.array([float(rating["noise"])]))
        return made
