"""What several readings of the labels say together: one model's errors are not the next one's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_torch.passes.calibration import Judged
from sage_torch.selection.result import Selection


@dataclass(frozen=True, eq=False)
class Readings:
    """The means of some readings of all labels.

    Attributes:
        probabilities: float32 (N,) in [0, 1], how likely each label is.
        is_wrong: float32 (N,) in [0, 1], the probability that each label is wrong.
        rho: The share of labels that are estimated to be wrong.
        count: How many readings there were.
    """

    probabilities: NDArray[np.float32]
    is_wrong: NDArray[np.float32]
    rho: float
    count: int

    @classmethod
    def of(cls, judged: Judged, rho: float, earlier: Readings | None) -> Readings:
        """Return what is known after one more reading."""
        if earlier is None:
            return cls(judged.probabilities, judged.is_wrong, rho, 1)
        count = earlier.count + 1

        def mean(new: NDArray[np.float32], old: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(old + (new.astype(np.float64) - old) / count, np.float32)

        return cls(
            mean(judged.probabilities, earlier.probabilities),
            mean(judged.is_wrong, earlier.is_wrong),
            earlier.rho + (rho - earlier.rho) / count,
            count,
        )

    @classmethod
    def of_selection(cls, selection: Selection | None, total: int) -> Readings | None:
        """Return what a selection of `total` examples went by; None if by nothing of the kind."""
        if selection is None or "readings" not in selection.settings:
            return None
        likely, is_wrong = selection.probabilities, selection.is_wrong
        if likely is None or is_wrong is None or len(likely) != total:  # of other data
            return None
        return cls(likely, is_wrong, selection.settings["rho"], selection.settings["readings"])
