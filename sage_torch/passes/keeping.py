"""Keeps what the rule reads, if the caller wants it for another cut."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sage_torch.passes.job import Job
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.passes.sketching import Sketched
from sage_torch.passes.views import Views
from sage_torch.selection.coordinates import OF_CALIBRATION, Coordinates, Keeper

_LOG = logging.getLogger("sage_torch")


@dataclass(frozen=True)
class Keeping:
    """Keeps the rows of this rank's examples while they are scored, or all of them after it."""

    job: Job
    sketched: Sketched
    keeper: Keeper

    @classmethod
    def of(cls, job: Job, sketched: Sketched) -> Keeping | None:
        """Return what keeps the rows; None where nobody wants them."""
        if not is_wanted(job):
            return None
        is_apart = job.mode.is_streaming
        places = job.own_places if is_apart else slice(0, job.reader.total)
        width = Views.compared_width(sketched)
        return cls(job, sketched, Keeper(places, width, sketched.sketch.sketch_size))

    def take(self, batch: ScoredBatch) -> None:
        """Keep a batch of a stream."""
        self.keeper.put(batch.indices, batch.coordinates)

    def finish(self, scored: Scored) -> Coordinates:
        """Return the coordinates of all examples, the same on every rank."""
        job, readout = self.job, self.sketched.readout
        if job.mode.is_streaming:
            parts = job.ranks.gather(self.keeper.rows)
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        else:
            self.keeper.put_all(scored.coordinates)
            rows = self.keeper.rows
        known, sample = {}, np.empty(0, np.int64)
        if readout is not None:
            of, sample = readout.calibration, readout.sample_places
            known = {name: float(getattr(of, name)) for name in OF_CALIBRATION}
        looked = job.options.rule == "herding" and job.options.trim == "auto"
        return Coordinates(rows, self.sketched.sketch.sketch_size, sample, known, looked)


def is_wanted(job: Job) -> bool:
    """Return whether anybody wants the rows."""
    return job.options.keep_coordinates or job.options.duplicates == "drop"


def announce(job: Job) -> None:
    """Log how many bytes the rows will take, before any work."""
    if is_wanted(job):
        width = job.plan.rows + job.of_features
        more = " or more" if job.options.sketch_size == "auto" else ""
        held = 2 * width * job.reader.total
        _LOG.info("coordinates: %s bytes%s on the host (2 x %d each)", f"{held:,}", more, width)


def both(
    first: Callable[[ScoredBatch], None], keeping: Keeping | None
) -> Callable[[ScoredBatch], None]:
    """Return what gives a batch to both."""
    if keeping is None:
        return first

    def take(batch: ScoredBatch) -> None:
        first(batch)
        keeping.take(batch)

    return take
