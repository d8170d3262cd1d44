"""What the trim reads of each example, and how much the example counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_torch.options import Options
from sage_torch.passes.rating import Rating
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.reading.classes import ClassBook


@dataclass(frozen=True)
class Trimming:
    """Reads margins, or the rating of labels where there is one.

    The rating goes by class, whatever the quotas go by: over all examples, a small class that
    overlaps with a large one would look wrong as a whole.

    Attributes:
        rating: By what is known of the labels; None without a readout.
        class_ids: int32 (N,), the class of every example; used with a rating.
    """

    rating: Rating | None = None
    class_ids: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def read(self, scored: Scored | ScoredBatch) -> NDArray[np.float32]:
        """Return what the trim reads, float32 (n,): below 0 goes."""
        if self.rating is None or scored.judged is None:
            return scored.margins
        return self.rating.quality(scored.judged, self._groups(scored))

    def masses(self, scored: Scored | ScoredBatch) -> NDArray[np.float32] | None:
        """Return how much each example counts, float32 (n,); None: all the same."""
        if self.rating is None or scored.judged is None:
            return None
        return self.rating.masses(scored.judged, self._groups(scored))

    def _groups(self, scored: Scored | ScoredBatch) -> NDArray[np.int32]:
        return self.class_ids[scored.indices if isinstance(scored, ScoredBatch) else slice(None)]

    def settings(self, scored: Scored) -> dict[str, Any]:
        """Return what the trim went by, for `Selection.settings`."""
        if self.rating is None or scored.judged is None:
            return {}
        by_noise, by_budget = self.rating.counts(scored.judged, self.class_ids)
        return {
            "threshold": self.rating.threshold,
            "trimmed_by_noise": by_noise,
            "trimmed_by_budget": by_budget,
        }


def trims_nothing(options: Options, classes: ClassBook) -> bool:
    """Return whether a trim by classes has nothing to go by.

    With one consensus for all, the trim would drop whatever opposes the majority: the rarer of two
    classes, one sign of a regression's residuals, the smaller of two domains.
    """
    return options.trim in ("auto", "negative") and classes.count < 2
