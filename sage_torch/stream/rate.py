"""Keeps or drops one example after the other at an exact rate, by quantiles and a controller."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Scores remembered per class. Four times as many find a hundredth more of what two passes keep. But
# old scores mislead when scores drift: the error of the share was then several times as large.
WINDOW = 512
_SOONEST = 32  # least number of examples over which a debt is paid


class RateKeeper:
    """Keeps the highest recent scores: a share of a stream and of each of its classes.

    A score's place p in (0, 1) among the last `window` scores of its class is uniform while their
    distribution stays as it is, so that `p >= 1 - rate` keeps a share of `rate`. The rate follows
    the number of examples owed to the class and to the stream: `keep + owed / window` each, with a
    shorter window while fewer have come. That makes the share exact up to a few examples, and
    restores it after a drift. Equal scores, and examples without a score, are placed at random.

    Args:
        keep: Share of the examples to keep, in (0, 1].
        seed: Names the draws.
        window: Scores remembered per class, and number of examples over which a debt is paid.

    Cost:
        `4 window + 16` bytes per class; one sort of the window per class and batch.
    """

    def __init__(self, keep: float, seed: int, window: int = WINDOW) -> None:
        self._keep, self._window = keep, window
        self._draws = torch.Generator().manual_seed(seed)
        self._scores = np.zeros((0, window), np.float32)  # rings, by class
        self._scored: list[int] = []  # scores so far, by class
        self._seen: list[int] = []
        self._kept: list[int] = []

    @property
    def seen(self) -> int:
        """Examples decided on so far."""
        return sum(self._seen)

    @property
    def kept(self) -> int:
        """How many of them were kept."""
        return sum(self._kept)

    def drawn(
        self, quality: NDArray[np.float32], masses: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return scores whose highest are random draws in proportion to masses, float32 (n,).

        Args:
            quality: float32 (n,); what is below 0 comes after all others, the highest first. NaN
                where nothing is known: so is the score.
            masses: float32 (n,) above 0; None where all are the same: equal scores are drawn from.

        Reference:
            Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information
            Processing Letters 2006.
        """
        if masses is None:
            return np.minimum(quality, 0)
        draws = torch.rand(
            len(quality), generator=self._draws, dtype=torch.float64, device="cpu"
        ).numpy()
        drawn = draws ** (1.0 / masses.astype(np.float64))
        return np.where(quality >= 0, drawn, quality).astype(np.float32)

    def decide(
        self, scores: NDArray[np.float32], class_ids: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Return which examples of a batch to keep (n,).

        Args:
            scores: float32 (n,); NaN where an example has no score.
            class_ids: int32 (n,), from 0 on; a new class needs no announcement.
        """
        self._make_room(int(class_ids.max()) + 1)
        # On the CPU, whichever device is torch's default.
        draws = torch.rand(
            len(scores), generator=self._draws, dtype=torch.float64, device="cpu"
        ).numpy()
        places = draws.copy()
        scored = np.flatnonzero(~np.isnan(scores))
        scored = scored[np.argsort(class_ids[scored], kind="stable")]
        borders = np.flatnonzero(np.diff(class_ids[scored])) + 1
        for members in np.split(scored, borders) if len(scored) else []:
            window = self._remember(int(class_ids[members[0]]), scores[members])
            low = np.searchsorted(window, scores[members], "left")
            high = np.searchsorted(window, scores[members], "right")
            places[members] = (low + draws[members] * (high - low)) / len(window)
        return self._at_rate(places, class_ids)

    def _at_rate(
        self, places: NDArray[np.float64], class_ids: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        # One example after the other: the debt must not grow within a batch.
        keep, seen, kept = self._keep, self._seen, self._kept
        all_seen, all_kept = self.seen, self.kept
        is_kept = np.zeros(len(places), np.bool_)
        for i, (place, c) in enumerate(zip(places.tolist(), class_ids.tolist(), strict=True)):
            owed = (keep * seen[c] - kept[c]) / self._pays_within(seen[c])
            all_owed = (keep * all_seen - all_kept) / self._pays_within(all_seen)
            rate = keep + owed + all_owed if keep < 1 else 1.0
            seen[c], all_seen = seen[c] + 1, all_seen + 1
            if place >= 1 - rate:
                kept[c], all_kept = kept[c] + 1, all_kept + 1
                is_kept[i] = True
        return is_kept

    def _pays_within(self, seen: int) -> int:
        # With few scores, places are rough anyway: the debt may be paid sooner.
        return min(max(seen, _SOONEST), self._window)

    def _remember(self, class_id: int, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add scores to a class's ring; return it sorted."""
        ring, before = self._scores[class_id], self._scored[class_id]
        last = scores[-self._window :]
        first = before + len(scores) - len(last)
        ring[(first + np.arange(len(last))) % self._window] = last
        self._scored[class_id] = before + len(scores)
        return np.sort(ring[: self._scored[class_id]])

    def _make_room(self, classes: int) -> None:
        new = classes - len(self._seen)
        if new > 0:
            self._scores = np.concatenate([self._scores, np.zeros((new, self._window), np.float32)])
            for counts in (self._scored, self._seen, self._kept):
                counts.extend([0] * new)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers from which `load_state_dict` resumes exactly."""
        return {
            "draws": self._draws.get_state(),
            "scores": torch.from_numpy(self._scores.copy()),
            "scored": list(self._scored),
            "seen": list(self._seen),
            "kept": list(self._kept),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where the keeper that gave `state` was.

        Raises:
            ValueError: It has another form. Nothing has changed then.
        """
        scores = state["scores"]
        counts = [state[name] for name in ("scored", "seen", "kept")]
        classes = len(scores)
        if scores.dtype != torch.float32 or scores.shape != (classes, self._window):
            raise ValueError(
                f"expected scores float32 of shape (classes, {self._window}), got {scores.dtype} "
                f"of shape {tuple(scores.shape)}"
            )
        for each in counts:
            if len(each) != classes or not all(type(n) is int and n >= 0 for n in each):
                raise ValueError(f"expected {classes} counts of at least 0, got {each!r}")
        draws = torch.Generator()
        draws.set_state(state["draws"])
        self._draws, self._scores = draws, scores.numpy().copy()
        self._scored, self._seen, self._kept = (list(each) for each in counts)
