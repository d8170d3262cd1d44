"""Rules that choose anew every epoch, from the losses seen in training or at random."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from benchmarks.quality.baselines.task import Chosen, check_quotas


class Dynamic(Protocol):
    """What a training loop needs of a rule that chooses anew every epoch."""

    def epoch(self, epoch: int, epochs: int) -> Chosen:
        """Return what to train on.

        Args:
            epoch: From 0.
            epochs: How many there will be.
        """
        ...

    def saw(self, indices: NDArray[np.int64], losses: NDArray[np.floating]) -> None:
        """Take note of the losses (n,), unweighted, that examples had when trained on."""
        ...


class RS2:
    """Random subsets redrawn every epoch, without replacement until a class is used up.

    Each class is shuffled, cut into pieces of its quota, one an epoch, and shuffled again. Where
    the quota does not divide the class, the rest waits for the next shuffle.

    Args:
        labels: int64 (N,), in [0, C).
        quotas: int64 (C,).
        seed: The same seed gives the same epochs.

    Raises:
        ValueError: A quota is negative or exceeds its class.

    Reference:
        Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of
        Learning", ICLR 2024.
    """

    def __init__(
        self, labels: NDArray[np.int64], quotas: NDArray[np.int64], *, seed: int = 0
    ) -> None:
        check_quotas(labels, quotas)
        self._classes = [
            (label, np.flatnonzero(labels == label), int(quotas[label]))
            for label in np.flatnonzero(quotas).tolist()
        ]
        self._count, self._seed = len(quotas), seed

    def epoch(self, epoch: int, epochs: int) -> Chosen:
        """Return the epoch's piece of each class, int64 (k,) together; any epoch, in any order."""
        parts = []
        for label, members, quota in self._classes:
            turn, piece = divmod(epoch, len(members) // quota)
            order = _core.Permutation(len(members), self._seed, turn * self._count + label)
            parts.append(members[order.take(piece * quota, quota)])
        return Chosen(np.sort(np.concatenate(parts)))

    def saw(self, indices: NDArray[np.int64], losses: NDArray[np.floating]) -> None:
        """Do nothing: losses do not matter here."""


class InfoBatch:
    """Examples of less than the mean loss are left out at random, the others of them weigh more.

    An epoch trains on all examples of at least the mean loss (as last seen) and on a random
    1 - ratio of those below, their losses times `1 / (1 - ratio)`: in the mean the gradient of all
    data. These weights are the paper's, not scaled to mean 1. Examples never seen are kept. The
    last epochs train on everything.

    Args:
        labels: int64 (N,); only N matters.
        quotas: Unused: how much is left out follows from the losses.
        seed: The same seed and losses give the same epochs.
        ratio: Share left out of the examples below the mean, in [0, 1).
        anneal: Share of the epochs, at the end, that train on everything.

    Raises:
        ValueError: A share is out of range.

    Reference:
        Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
        ICLR 2024.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        quotas: NDArray[np.int64] | None = None,
        *,
        seed: int = 0,
        ratio: float = 0.5,
        anneal: float = 0.125,
    ) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(f"expected ratio from 0 to below 1, got {ratio}")
        if not 0 <= anneal <= 1:
            raise ValueError(f"expected anneal from 0 to 1, got {anneal}")
        self._losses = np.full(len(labels), np.nan)
        self._seed, self._ratio, self._anneal = seed, ratio, anneal

    def epoch(self, epoch: int, epochs: int) -> Chosen:
        """Return what to train on, (k,) with k between (1 - ratio) N and N."""
        count = len(self._losses)
        seen = ~np.isnan(self._losses)
        if epoch >= (1 - self._anneal) * epochs or not seen.any():
            return Chosen(np.arange(count))
        easy = np.flatnonzero(seen & (self._losses < self._losses[seen].mean()))
        order = _core.Permutation(max(len(easy), 1), self._seed, epoch)
        dropped = easy[order.take(0, int(self._ratio * len(easy)))]
        weights = np.ones(count, np.float32)
        weights[easy] = 1 / (1 - self._ratio)
        kept = np.setdiff1d(np.arange(count), dropped, assume_unique=True)
        return Chosen(kept, weights[kept])

    def saw(self, indices: NDArray[np.int64], losses: NDArray[np.floating]) -> None:
        """Keep the losses (n,); those of examples left out stay as they were.

        Raises:
            ValueError: A loss is not finite.
        """
        if not np.isfinite(losses).all():
            raise ValueError("expected finite losses; lower the learning rate if it diverges")
        self._losses[indices] = losses
