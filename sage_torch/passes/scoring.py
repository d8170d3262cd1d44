"""Pass 2: `-> sketched gradients -> consensus -> agreement, margin`.

One scorer serves all modes. When streaming it scores each batch with the consensus that pass 1 has
carried along. Otherwise it scores all coordinates at once with their exact consensus: pass 2 has
collected them, or pass 1 has carried them along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.gradients.features import look
from sage_torch.passes.calibration import Judged
from sage_torch.passes.features import own_probabilities
from sage_torch.passes.job import Job
from sage_torch.passes.sketching import Sketched
from sage_torch.passes.views import Views
from sage_torch.reading.reader import naming_the_example
from sage_torch.reading.shards import Shard

_TITLE = "SAGE pass 2 of 2: score"
_COLUMNS = 4  # number of columns of coordinates sorted at once


@dataclass(frozen=True)
class ScoredBatch:
    """The part of a batch that a covering rule sees when streaming."""

    shard: Shard
    indices: NDArray[np.int64]  # (n,)
    coordinates: NDArray[np.float32]  # (n, w) as in `Scored`
    margins: NDArray[np.float32]  # (n,)
    judged: Judged | None  # as in `Scored`


@dataclass(frozen=True)
class Scored:
    """The results of scoring, the same on every rank."""

    scores: NDArray[np.float32]  # (N,) agreement
    margins: NDArray[np.float32]  # (N,) the trim reads them
    # What herding compares: orthonormal (N, l), or beside features (N, l + r), both at length 1;
    # (0, l) when streaming.
    coordinates: NDArray[np.float32]
    consensus_cosine: float  # NaN if the exact consensus is not known
    judged: Judged | None = None  # what is known of the labels (N,); None without a readout


def score(job: Job, sketched: Sketched, take: Callable[[ScoredBatch], None]) -> Scored:
    """Score every example.

    In one-pass mode, no example is read again. Early examples have been through later shrinks, so
    their coordinates are shorter than under the final sketch. So the consensus is not the exact
    one. How near it is, is not known: its cosine is NaN.

    Args:
        job: The data to read, and the mode.
        sketched: The results of pass 1.
        take: When streaming, it is called with each batch of this rank, shard after shard.

    Raises:
        SageError: A loss or gradient is not finite (names the example), or another rank failed.

    Cost:
        Per example one gradient (none in one pass, or if pass 1 has kept its factors) and l d
        multiply-adds. Memory: 8 bytes per example (24 with a readout), and 4 l more on every rank
        unless streaming; beside features of which r numbers are compared, 4 (2 l + r).
    """
    if job.mode.is_streaming:
        return _streamed(job, sketched, take)
    if job.mode.is_one_pass:
        coordinates = _in_order(job, sketched.sketch.take_coordinates())
        return _scored(sketched, Views(coordinates), math.nan)
    own = job.ranks.together(lambda: _read(job, sketched))
    return _scored(sketched, Views.of_arrays(job.ranks.joined_all(own.arrays())))


def _read(job: Job, sketched: Sketched) -> Views:
    """Return the views of this rank's examples."""
    own = job.own_places
    views = Views.empty(own.stop - own.start, sketched)
    with job.reader.progress(_TITLE, job.own) as bar:
        for shard in job.own:
            for indices, _, part in _views(job, sketched, shard):
                views.put(indices - own.start, part)
                bar.update(len(indices))
    return views


def _scored(sketched: Sketched, views: Views, cosine: float = 1.0) -> Scored:
    """Score all examples by their weighted coordinates; these become orthonormal in place."""
    coordinates = views.coordinates
    class_ids = sketched.classes.of(slice(None))
    consensus = _core.Consensus(sketched.classes.count, coordinates.shape[1])
    consensus.add(coordinates, class_ids)
    scores, margins = _empty(len(coordinates)), _empty(len(coordinates))
    scorer = _core.Scorer(consensus.directions(), scores, margins, first=0)
    scorer.score(coordinates, class_ids, np.arange(len(coordinates)))
    coordinates *= _to_orthonormal(sketched.sketch)
    return Scored(scores, margins, views.compared(), cosine, views.judged)


def _streamed(job: Job, sketched: Sketched, take: Callable[[ScoredBatch], None]) -> Scored:
    """Score each batch at once with the consensus of pass 1, and forget it."""
    own, sketch = job.own_places, sketched.sketch
    count = own.stop - own.start
    scores, margins = _empty(count), _empty(count)
    judged = None if sketched.readout is None else Judged.empty(count)
    to_orthonormal = _to_orthonormal(sketch)
    directions = unit_rows(sketch.class_directions().cpu().numpy()[sketched.order])

    def scored(shard: Shard, advance: Callable[[int], object]) -> NDArray[np.float64]:
        places = slice(shard.start - own.start, shard.stop - own.start)
        scorer = _core.Scorer(directions, scores[places], margins[places], first=shard.start)
        for indices, class_ids, part in _views(job, sketched, shard):
            scorer.score(part.coordinates, class_ids, indices)
            at = indices - own.start
            if judged is not None and part.judged is not None:
                for whole, of_part in zip(judged, part.judged, strict=True):
                    whole[at] = of_part
            part = part._replace(coordinates=part.coordinates * to_orthonormal)
            take(ScoredBatch(shard, indices, part.compared(), margins[at], part.judged))
            advance(len(indices))
        return scorer.exact_sums()

    def all_scored() -> list[NDArray[np.float64]]:
        with job.reader.progress(_TITLE, job.own) as bar:
            return [scored(shard, bar.update) for shard in job.own]

    sums = job.ranks.together(all_scored)
    # The exact consensus is known now: compare the carried one with it.
    exact = _core.Consensus(*directions.shape)
    for of_shard in (part for of_rank in job.ranks.gather(sums) for part in of_rank):
        exact.add_sums(of_shard)  # in the shards' order on every rank
    joined_scores, joined_margins = job.ranks.joined_all([scores, margins])
    return Scored(
        joined_scores,
        joined_margins,
        np.empty((0, sketch.sketch_size), np.float32),
        _smallest_cosine(directions, exact.directions()),
        None if judged is None else Judged(*job.ranks.joined_all(judged)),
    )


def _views(
    job: Job, sketched: Sketched, shard: Shard
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], Views]]:
    """Yield indices (n,), class ids (n,) and views of the examples of a shard, batch by batch.

    Views from a snapshot come first; the others are computed, from what pass 1 has kept or from the
    data.
    """
    if sketched.kept is not None:
        for indices, rows, hidden, own in sketched.kept.rows(job, shard):
            class_ids = sketched.classes.of(indices)
            yield indices, class_ids, Views.of(sketched, rows, hidden, class_ids, own)
        return
    done = 0
    for part in job.snapshots.rows(shard, Views.width(sketched)):
        indices = job.reader.indices(shard, done, len(part))
        done += len(part)
        yield indices, sketched.classes.of(indices), Views.unpacked(sketched, part)
    if done == len(shard):
        return
    for indices, batch, labels in job.reader.batches(shard, begin=done):
        class_ids = sketched.classes.check(indices, labels)
        features = job.features if sketched.readout is not None else None
        with naming_the_example(indices):
            looked = look(job.computer, features, batch, len(indices))
            seen = looked.seen
            known = None if seen is None else seen.features.cpu().numpy()
            own = None if seen is None else own_probabilities(job, seen.outer)
            views = Views.of(sketched, looked.rows, known, class_ids, own)
        done += len(indices)
        yield indices, class_ids, views
        job.snapshots.save_rows(shard, done, views.packed())


def _in_order(job: Job, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sort rows (N, l) from the reading order into the order of the data set."""
    for shard in job.shards:  # shards were merged as neighbours: they follow each other
        part = coordinates[shard.places]
        places = job.reader.indices(shard, 0, len(shard)) - shard.start
        for first in range(0, part.shape[1], _COLUMNS):  # a few, so that no full copy is held
            columns = part[:, first : first + _COLUMNS]
            columns[places] = columns.copy()
    return coordinates


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return rows at length 1, in float64; a zero row stays zero."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    norms[norms == 0] = 1.0
    unit: NDArray[np.float64] = wide / norms
    return unit


def _empty(n: int) -> NDArray[np.float32]:
    return np.empty(n, np.float32)


def _to_orthonormal(sketch: _core.FrequentDirections) -> NDArray[np.float32]:
    values = sketch.singular_values()
    scale = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    return scale.astype(np.float32)


def _smallest_cosine(ours: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    is_there = np.linalg.norm(exact, axis=1) > 0  # no consensus if all gradients are 0
    cosines = (ours * exact).sum(axis=1)[is_there]
    return float(cosines.min()) if len(cosines) else 1.0
