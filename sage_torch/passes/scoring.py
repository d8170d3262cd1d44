"""Pass 2: `-> sketched gradients -> consensus -> agreement, margin`.

Each shard is scored by itself; sums of the consensus are added in the shards' order. In the
one-pass mode pass 1 has brought the sketched gradients along, and nothing is read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.gradients.outer import Rows, given_by
from sage_torch.options import Basis
from sage_torch.passes.job import Task, naming_the_example
from sage_torch.passes.sketching import Sketched
from sage_torch.reading.shards import Shard

_TITLE = "SAGE pass 2 of 2: score"


@dataclass(frozen=True)
class _Batch:
    """Which examples a batch holds."""

    indices: NDArray[np.int64]  # (n,)
    class_ids: NDArray[np.int32]  # (n,)


@dataclass(frozen=True)
class Scored:
    """What pass 2 leaves behind, the same on every rank."""

    scores: NDArray[np.float32]  # (N,) agreement in the basis that was asked for
    agreement: NDArray[np.float32]  # (N,) in the weighted basis: what strata and draws read
    margins: NDArray[np.float32]  # (N,) in the weighted basis: what the trim reads
    coordinates: NDArray[np.float32] | None  # (N, l) orthonormal; None when streaming
    consensus_cosine: float  # NaN where the exact consensus is not known


def score_pass(task: Task, sketched: Sketched) -> Scored:
    """Pass 2, exact: keep all sketched gradients, then take the consensus and the scores.

    Raises:
        SageError: A loss or gradient is not finite; names the example's index. Another rank failed.

    Cost:
        One gradient an example and l d multiply-adds; memory 4 l bytes an example, on every rank.
    """
    sketch, own = sketched.sketch, task.own_places

    def sketched_gradients() -> NDArray[np.float32]:
        coordinates = np.empty((own.stop - own.start, sketch.sketch_size), np.float32)

        def keep(part: NDArray[np.float32], batch: _Batch) -> None:
            coordinates[batch.indices - own.start] = part

        def project(rows: Rows, batch: _Batch) -> NDArray[np.float32]:
            part = sketch.sketched(rows)
            keep(part, batch)
            return part

        with task.examples.progress(_TITLE, task.own) as bar:
            for shard in task.own:
                _read_again(task, sketched, shard, project, keep, bar.update)
        return coordinates

    coordinates = _of_all_ranks(task, task.ranks.together(sketched_gradients))
    return _scored(task, sketched, coordinates, 1.0)


def carried_score(task: Task, sketched: Sketched) -> Scored:
    """Score the sketched gradients that pass 1 has carried along; no example is read.

    Those taken in early have been through later shrinks and are shorter than they would be under
    the final sketch. So the consensus is not the exact one, and how near it is, is not known: its
    cosine is NaN.

    Cost:
        4 l bytes an example, on every rank.
    """
    assert sketched.coordinates is not None  # the one-pass mode's
    return _scored(task, sketched, sketched.coordinates, math.nan)


def _scored(
    task: Task, sketched: Sketched, coordinates: NDArray[np.float32], cosine: float
) -> Scored:
    """Return what all weighted coordinates (N, l) come to; they become orthonormal in place."""
    classes, sketch = sketched.classes, sketched.sketch
    class_ids = classes.of(slice(None))
    directions = _exact_consensus(coordinates, class_ids, classes.count)
    agreement = _core.agreement(coordinates, class_ids, directions)
    margins = _core.margin(coordinates, class_ids, directions)
    coordinates *= _to_orthonormal(sketch)
    scores = agreement
    if task.options.basis == "orthonormal":
        directions = _exact_consensus(coordinates, class_ids, classes.count)
        scores = _core.agreement(coordinates, class_ids, directions)
    return Scored(scores, agreement, margins, coordinates, cosine)


def streaming_score_pass(
    task: Task, sketched: Sketched, streams: Sequence[_core.BlockStream | None]
) -> Scored:
    """Pass 2, streaming: score each batch at once with the consensus of pass 1, and forget it.

    Args:
        task: `options.basis`.
        sketched: What pass 1 left behind.
        streams: One for each of this rank's shards: a rule that compares examples goes along; it
            gets every batch, and is read later.

    Raises:
        SageError: A loss or gradient is not finite; names the example's index. Another rank failed.

    Cost:
        As the exact pass, but memory for scores and margins only: 4 bytes an example each.
    """
    own, directions = task.own_places, sketched.directions
    scores: dict[Basis, NDArray[np.float32]] = {
        basis: np.empty(own.stop - own.start, np.float32) for basis in directions
    }
    margins = np.empty(own.stop - own.start, np.float32)
    values = sketched.sketch.singular_values()

    def of_shard(basis: Basis, shard: Shard) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        return directions[basis], scores[basis][_within(own, shard)]

    scorers = [
        _core.Scorer(
            values,
            of_shard("weighted", shard),
            of_shard("orthonormal", shard) if "orthonormal" in directions else None,
            margins[_within(own, shard)],
            first=shard.start,
        )
        for shard in task.own
    ]

    def score_shard(
        shard: Shard,
        scorer: _core.Scorer,
        stream: _core.BlockStream | None,
        advance: Callable[[int], object],
    ) -> None:
        def score(rows: Rows, batch: _Batch) -> NDArray[np.float32]:
            return scorer.score(sketched.sketch, rows, batch.class_ids, batch.indices, stream)

        def score_sketched(part: NDArray[np.float32], batch: _Batch) -> None:
            scorer.score_sketched(part, batch.class_ids, batch.indices, stream)

        _read_again(task, sketched, shard, score, score_sketched, advance)

    def score_all() -> None:
        with task.examples.progress(_TITLE, task.own) as bar:
            for shard, scorer, stream in zip(task.own, scorers, streams, strict=True):
                score_shard(shard, scorer, stream, bar.update)

    task.ranks.together(score_all)
    # The exact consensus is known now: how far was the carried one from it?
    cosine = min(
        _smallest_cosine(of_class, _exact_directions(task, scorers, basis))
        for basis, of_class in directions.items()
    )
    by_basis = {basis: _of_all_ranks(task, of_own) for basis, of_own in scores.items()}
    return Scored(
        by_basis[task.options.basis],
        by_basis["weighted"],
        _of_all_ranks(task, margins),
        None,
        cosine,
    )


def _read_again(
    task: Task,
    sketched: Sketched,
    shard: Shard,
    take: Callable[[Rows, _Batch], NDArray[np.float32]],
    take_sketched: Callable[[NDArray[np.float32], _Batch], None],
    advance: Callable[[int], object],
) -> None:
    """Give a shard's gradients to `take`, batch by batch.

    Args:
        task: What is read, and its snapshots.
        sketched: What pass 1 left behind.
        shard: Which examples.
        take: Takes gradients (n, d), or their factors; returns their weighted coordinates (n, l),
            all finite.
        take_sketched: Takes such coordinates where a snapshot has them.
        advance: Is told how many examples have been taken.
    """
    done = 0
    if task.snapshots is not None:
        for part in task.snapshots.rows(shard, sketched.sketch.sketch_size):
            indices = task.examples.indices(shard, done, len(part))
            take_sketched(part, _Batch(indices, sketched.classes.of(indices)))
            done += len(part)
            advance(len(part))
    if done == len(shard):
        return
    for indices, batch, labels in task.examples.batches(shard, begin=done):
        class_ids = sketched.classes.check(indices, labels)
        with naming_the_example(indices):
            part = take(given_by(task.gradients, batch), _Batch(indices, class_ids))
        done += len(indices)
        if task.snapshots is not None:
            task.snapshots.save_rows(shard, done, part)
        advance(len(indices))


def _within(own: slice, shard: Shard) -> slice:
    """Return where a shard's examples stand among this rank's."""
    return slice(shard.start - own.start, shard.stop - own.start)


def _exact_directions(
    task: Task, scorers: Sequence[_core.Scorer], basis: Basis
) -> NDArray[np.float64]:
    """Return the exact consensus: sums over all shards, in their order on every rank."""
    own = [scorer.exact_sums(orthonormal=basis == "orthonormal") for scorer in scorers]
    sums = [part for of_rank in task.ranks.gather(own) for part in of_rank]
    whole = _core.Consensus(*sums[0].shape)
    for part in sums:
        whole.add_sums(part)
    return whole.directions()


def _of_all_ranks(task: Task, own: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = task.ranks.gather(own)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _exact_consensus(
    coordinates: NDArray[np.float32], class_ids: NDArray[np.int32], classes: int
) -> NDArray[np.float64]:
    consensus = _core.Consensus(classes, coordinates.shape[1])
    consensus.add(coordinates, class_ids)
    return consensus.directions()


def _to_orthonormal(sketch: _core.FrequentDirections) -> NDArray[np.float32]:
    values = sketch.singular_values()
    scale = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    return scale.astype(np.float32)


def _smallest_cosine(ours: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    is_there = np.linalg.norm(exact, axis=1) > 0  # a class whose gradients are all 0 has none
    cosines = (ours * exact).sum(axis=1)[is_there]
    return float(cosines.min()) if len(cosines) else 1.0
