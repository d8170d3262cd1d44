"""What several readings of the labels say together: one model's errors are not the next one's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_torch.passes.calibration import Judged
from sage_torch.selection.result import Selection


@dataclass(frozen=True, eq=False)
class Known:
    """The means of some readings of all labels.

    Attributes:
        probabilities: float32 (N,) in [0, 1], how likely each label is.
        right: float32 (N,) in [0, 1], the probability that each label is right.
        rho: The share of labels that are estimated to be wrong.
        readings: How many there were.
    """

    probabilities: NDArray[np.float32]
    right: NDArray[np.float32]
    rho: float
    readings: int

    @classmethod
    def of(cls, judged: Judged, rho: float, earlier: Known | None) -> Known:
        """Return what is known after one more reading."""
        likely, right = judged.probabilities, 1 - judged.is_wrong
        if earlier is None:
            return cls(likely, right, rho, 1)
        count = earlier.readings + 1

        def mean(new: NDArray[np.float32], old: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(old + (new.astype(np.float64) - old) / count, np.float32)

        return cls(
            mean(likely, earlier.probabilities),
            mean(right, earlier.right),
            earlier.rho + (rho - earlier.rho) / count,
            count,
        )

    @classmethod
    def of_selection(cls, selection: Selection | None) -> Known | None:
        """Return what a selection went by; None if it went by nothing of the kind."""
        if selection is None or selection.draws is None or selection.probabilities is None:
            return None
        if selection.draws.right is None:
            return None
        right = np.empty(len(selection.probabilities), np.float32)
        right[selection.draws.order] = selection.draws.right
        settings = selection.settings
        return cls(selection.probabilities, right, settings["rho"], settings["readings"])
