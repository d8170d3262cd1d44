"""Pass 1: `batches -> per-example gradients -> sketch`.

Each shard is sketched by itself, and the sketches are merged in one fixed tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.gradients.features import look
from sage_torch.gradients.interaction import all_zero
from sage_torch.gradients.outer import size_of
from sage_torch.passes.features import FeatureBook, Kept
from sage_torch.passes.growth import Growth
from sage_torch.passes.job import Job
from sage_torch.passes.labelling import class_book, noted, share_classes
from sage_torch.passes.merging import joined, new_sketch, of_one_class, sketch_of, tree_of
from sage_torch.passes.readout import Readout
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.reader import naming_the_example
from sage_torch.reading.shards import Shard


@dataclass(frozen=True)
class Sketched:
    """The results of pass 1, the same on every rank."""

    sketch: _core.FrequentDirections
    classes: ClassBook
    order: NDArray[np.int64]  # (C,) for each class here, its id in the sketch
    readout: Readout | None = None  # of the features
    kept: Kept | None = None  # factors of this rank's gradients


def sketch_pass(job: Job) -> Sketched:
    """Pass 1: stream the gradients of all examples into one sketch.

    Args:
        job: The sketch carries along what its mode needs: each class's consensus when streaming,
            each example's coordinates in one-pass mode.

    Returns:
        The sketch and the classes.

    Raises:
        ValueError: All gradients are zero.
        SageError: A loss or gradient is not finite (names the example), or another rank failed.

    Cost:
        Per example one gradient, and about 7 l d operations for the sketch. Memory: 4 l d bytes
        log2(shards) times, and 4 bytes per example. To this, streaming adds C d numbers, and
        one-pass mode 4 l bytes per example.
    """
    classes, features = class_book(job), FeatureBook(job)
    tree = tree_of(job)
    reads_once = job.mode.is_one_pass or job.keeps_seen
    title = "SAGE pass 1 of 1" if reads_once else "SAGE pass 1 of 2: sketch"
    with job.reader.progress(title, job.own) as bar:
        rows, opened = _settled(job, classes, features, bar.update)

        def sketched(shard: Shard) -> _core.FrequentDirections:
            is_open = opened is not None and shard is job.shards[0]
            reading = (
                opened if is_open else _sketching(job, shard, classes, features, bar.update, rows)
            )
            *_, sketch = reading  # type: ignore[misc]
            return sketch

        job.ranks.together(lambda: tree.build(sketched))
    share_classes(job, classes)
    sketch = joined(job, tree, classes)
    if not sketch.squared_norm > 0:
        raise all_zero(f"{job.reader.total} examples")
    order = classes.finish()
    if job.mode.is_streaming and not classes.are_classes:
        sketch = of_one_class(sketch)
    job.snapshots.follow(sketch)
    readout = job.ranks.together(lambda: features.finish(classes, order))
    return Sketched(sketch, classes, order, readout, features.kept)


def _settled(
    job: Job, classes: ClassBook, features: FeatureBook, advance: Callable[[int], object]
) -> tuple[int, Iterator[_core.FrequentDirections] | None]:
    """Return the rows of all sketches, and the first shard's reading if it has begun.

    Only `sketch_size="auto"` reads part of the first shard for it; other ranks wait.
    """
    if job.options.sketch_size != "auto":
        return job.plan.rows, None

    def ask() -> tuple[int, Iterator[_core.FrequentDirections] | None]:
        if job.ranks.rank != 0:
            return 0, None
        reading = _sketching(job, job.shards[0], classes, features, advance, None)
        return next(reading).sketch_size, reading

    size, reading = job.ranks.together(ask)
    return job.ranks.broadcast(size), reading


def _sketching(
    job: Job,
    shard: Shard,
    classes: ClassBook,
    features: FeatureBook,
    advance: Callable[[int], object],
    size: int | None,
) -> Iterator[_core.FrequentDirections]:
    """Yield a shard's sketch when its size is final, and again when the shard has been read.

    Args:
        job: The data to read, and the options.
        shard: The examples to read.
        classes: The book that notes their classes.
        features: The book that notes their features.
        advance: Called with the number of further examples done.
        size: Rows of the sketch; None if this shard decides.
    """
    sketch: _core.FrequentDirections | None = None
    growth = Growth(job, shard, classes, size)

    def resume(state: dict[str, Any], of_classes: dict[str, NDArray[Any]]) -> None:
        nonlocal sketch
        growth.check(len(state["sketch"]))
        indices = job.reader.indices(shard, 0, len(of_classes["ids"]))
        positions = classes.adopt(indices, of_classes)
        features.adopt(shard, of_classes, positions)
        sketch = sketch_of(job, state, positions)  # all or nothing

    def so_far() -> dict[str, NDArray[Any]]:
        return classes.part(job.reader.indices(shard, 0, done)) | features.part(shard)

    done = job.snapshots.sketch(shard, resume)
    advance(done)
    is_settled = False
    if sketch is not None and growth.is_settled(sketch):
        is_settled = True
        yield sketch
    batches = job.reader.batches(shard, begin=done) if done < len(shard) else ()
    for indices, batch, labels in batches:
        had_classes = classes.are_classes
        class_ids = noted(job, shard, classes, indices, labels, done)
        gave_up = had_classes and not classes.are_classes
        if gave_up and job.mode.is_streaming and sketch is not None:
            sketch = of_one_class(sketch)  # the sums of many classes may be large
        with naming_the_example(indices):
            looked = look(job.computer, job.features, batch, len(indices))
        rows = looked.rows
        features.note(shard, indices, class_ids, looked.seen)
        if sketch is None:
            sketch = new_sketch(job, *size_of(rows), growth.first_rows)
        growth.update(sketch, rows, job.mode.carried_ids(class_ids), indices)
        done += len(indices)
        advance(len(indices))
        job.snapshots.save_sketch(shard, done, sketch, so_far)
        if not is_settled and growth.is_settled(sketch):
            is_settled = True
            yield sketch
    assert sketch is not None  # no shard is empty
    yield sketch
