"""Epochs that show each example as often as its label is worth it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sage_torch.options import Options
from sage_torch.passes.rating import Rating
from sage_torch.passes.readings import Readings
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.rules.chosen import Chosen
from sage_torch.rules.whole import draws_of

# The share of wrong labels from which on nothing comes more often for being hard: most of what is
# hard is wrong then. Chosen on benchmarks/quality/long_runs.py, seeds from 200 on.
_MANY_WRONG = 0.1


@dataclass(frozen=True)
class Worth:
    """A part of all examples in each epoch, by all readings of their labels so far."""

    class_ids: NDArray[np.int32]  # (N,) of groups
    quotas: NDArray[np.int64]  # (C,)
    options: Options
    rating: Rating
    rho: float  # of this reading
    earlier: Readings | None

    def take(self, batch: ScoredBatch) -> None:
        """Ignore the batch."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        assert scored.judged is not None
        readings = Readings.of(scored.judged, self.rho, self.earlier)
        everything, seed = np.arange(len(self.class_ids)), self.options.seed
        plain = draws_of(everything, self.class_ids, self.quotas, "rotate", seed)
        hard, right = 1 - readings.probabilities[plain.order], 1 - readings.is_wrong[plain.order]
        exponent = self.rating.exponent * max(0.0, 1.0 - readings.rho / _MANY_WRONG)
        draws = replace(plain, hard=hard, right=right, exponent=exponent)
        judged = scored.judged._replace(
            probabilities=readings.probabilities, is_wrong=readings.is_wrong
        )
        return Chosen(
            draws.epoch(0),
            int((right == 0).sum()),
            draws,
            settings={"rho": readings.rho, "readings": readings.count},
            judged=judged,
        )
