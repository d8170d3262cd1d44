"""The two streaming passes over a data set: sketch the gradients, then score them.

`batches -> per-example gradients -> sketch`, then
`-> sketched gradients -> consensus -> agreement, margin`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_torch import _core
from sage_torch.classes import ClassBook
from sage_torch.examples import Examples
from sage_torch.gradients import GradientComputer, rows_of
from sage_torch.options import Basis, Options


@dataclass(frozen=True)
class Sketched:
    """What pass 1 leaves behind."""

    sketch: _core.FrequentDirections
    classes: ClassBook
    # (C, l) consensus of the streaming mode by basis; empty in the exact mode.
    directions: dict[Basis, NDArray[np.float64]]


def sketch_pass(
    examples: Examples, gradients: GradientComputer, options: Options, *, is_streaming: bool
) -> Sketched:
    """Pass 1: stream the gradients of all examples into one sketch.

    Args:
        examples: The data set.
        gradients: The computer of both passes.
        options: `sketch_size`, `class_balanced`, `basis`.
        is_streaming: Whether the consensus is carried along with the sketch.

    Returns:
        Sketch, classes, and the consensus when it was carried along.

    Raises:
        SageError: A loss or gradient is not finite; names the example's index.

    Cost:
        One gradient an example and about 7 l d multiply-adds for the sketch; memory 4 l d bytes
        and 4 bytes an example (and C d numbers when streaming).
    """
    classes = ClassBook(examples.total, options.class_balanced)
    sketch: _core.FrequentDirections | None = None
    bases = _bases(options) if is_streaming else []
    for indices, batch, labels in examples.batches("SAGE pass 1 of 2: sketch"):
        class_ids = classes.add(indices, labels)
        with naming_the_example(indices):
            rows = rows_of(gradients, batch)
            if sketch is None:
                sketch = _core.FrequentDirections(
                    options.sketch_size, rows.shape[1], device=rows.device
                )
                for basis in bases:
                    sketch.carry_consensus(orthonormal=basis == "orthonormal")
            sketch.update(rows, class_ids if is_streaming else None)
    assert sketch is not None  # there is at least one example
    order = classes.finish()
    directions = {
        basis: _unit_rows(
            sketch.class_directions(orthonormal=basis == "orthonormal").cpu().numpy()[order]
        )
        for basis in bases
    }
    return Sketched(sketch, classes, directions)


@dataclass(frozen=True)
class Scored:
    """What pass 2 leaves behind."""

    scores: NDArray[np.float32]  # (N,) agreement in the basis that was asked for
    agreement: NDArray[np.float32]  # (N,) in the weighted basis: what strata and draws read
    margins: NDArray[np.float32]  # (N,) in the weighted basis: what the trim reads
    coordinates: NDArray[np.float32] | None  # (N, l) orthonormal; None when streaming
    consensus_cosine: float


def score_pass(
    examples: Examples, gradients: GradientComputer, options: Options, sketched: Sketched
) -> Scored:
    """Pass 2, exact: keep all sketched gradients, then take the consensus and the scores.

    Raises:
        SageError: A loss or gradient is not finite; names the example's index.

    Cost:
        One gradient an example and l d multiply-adds; memory 4 l bytes an example.
    """
    classes, sketch = sketched.classes, sketched.sketch
    coordinates = np.empty((examples.total, sketch.sketch_size), np.float32)
    for indices, _, part in _sketched_gradients(examples, gradients, sketched):
        coordinates[indices] = part
    class_ids = classes.of(slice(None))
    directions = _exact_consensus(coordinates, class_ids, classes.count)
    agreement = _core.agreement(coordinates, class_ids, directions)
    margins = _core.margin(coordinates, class_ids, directions)
    coordinates *= _to_orthonormal(sketch)
    scores = agreement
    if options.basis == "orthonormal":
        directions = _exact_consensus(coordinates, class_ids, classes.count)
        scores = _core.agreement(coordinates, class_ids, directions)
    return Scored(scores, agreement, margins, coordinates, 1.0)


def streaming_score_pass(
    examples: Examples,
    gradients: GradientComputer,
    options: Options,
    sketched: Sketched,
    stream: _core.BlockStream | None,
) -> Scored:
    """Pass 2, streaming: score each batch at once with the consensus of pass 1, and forget it.

    Args:
        examples: The data set.
        gradients: The computer of both passes.
        options: `basis`.
        sketched: What pass 1 left behind.
        stream: A rule that compares examples goes along: it gets every batch, and is read later.

    Raises:
        SageError: A loss or gradient is not finite; names the example's index.

    Cost:
        As the exact pass, but memory for scores and margins only: 4 bytes an example each.
    """
    classes, sketch, directions = sketched.classes, sketched.sketch, sketched.directions
    width = sketch.sketch_size
    scores: dict[Basis, NDArray[np.float32]] = {
        basis: np.empty(examples.total, np.float32) for basis in directions
    }
    margins = np.empty(examples.total, np.float32)
    # The exact consensus is known when the pass is over: how far was the carried one from it?
    exact = {basis: _core.Consensus(classes.count, width) for basis in directions}
    to_orthonormal = _to_orthonormal(sketch)
    for indices, class_ids, weighted in _sketched_gradients(examples, gradients, sketched):
        coordinates: dict[Basis, NDArray[np.float32]] = {
            "weighted": weighted,
            "orthonormal": weighted * to_orthonormal,
        }
        for basis, consensus in exact.items():
            consensus.add(coordinates[basis], class_ids)
        for basis, of_class in directions.items():
            scores[basis][indices] = _core.agreement(coordinates[basis], class_ids, of_class)
        of_batch = _core.margin(weighted, class_ids, directions["weighted"])
        margins[indices] = of_batch
        if stream is not None:
            stream.add(coordinates["orthonormal"], of_batch, class_ids, indices)
    cosine = min(
        _smallest_cosine(directions[basis], consensus.directions())
        for basis, consensus in exact.items()
    )
    return Scored(scores[options.basis], scores["weighted"], margins, None, cosine)


def label_pass(examples: Examples, options: Options) -> ClassBook:
    """Read the labels only: all that `rule="random"` needs.

    Cost:
        One reading of the data set, no gradient.
    """
    classes = ClassBook(examples.total, options.class_balanced)
    for indices, _, labels in examples.batches("SAGE: read labels"):
        classes.add(indices, labels)
    classes.finish()
    return classes


def _sketched_gradients(
    examples: Examples, gradients: GradientComputer, sketched: Sketched
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]]:
    """Yield `(indices (n,), class ids (n,), weighted coordinates (n, l))` batch by batch."""
    for indices, batch, labels in examples.batches("SAGE pass 2 of 2: score"):
        class_ids = sketched.classes.check(indices, labels)
        with naming_the_example(indices):
            coordinates = sketched.sketch.project(rows_of(gradients, batch)).cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(coordinates).all(axis=1))
            if len(bad):
                error = _core.SageError("its sketched gradient has a NaN or an infinite entry")
                error.row = int(bad[0])
                raise error
        yield indices, class_ids, coordinates


def _bases(options: Options) -> list[Basis]:
    return ["weighted"] if options.basis == "weighted" else ["weighted", "orthonormal"]


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


@contextmanager
def naming_the_example(indices: NDArray[np.int64]) -> Iterator[None]:
    """Turn the position in a batch that an error names into the example's index."""
    try:
        yield
    except (_core.SageError, ValueError) as error:
        row = getattr(error, "row", None)
        if row is None:
            raise
        named = type(error)(f"example {indices[row]} of the data set: {error}")
        named.row, named.index = row, int(indices[row])  # type: ignore[union-attr]
        raise named from error


def _unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    norms[norms == 0] = 1.0  # a zero row stays zero
    unit: NDArray[np.float64] = wide / norms
    return unit


def _smallest_cosine(ours: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    is_there = np.linalg.norm(exact, axis=1) > 0  # a class whose gradients are all 0 has none
    cosines = (ours * exact).sum(axis=1)[is_there]
    return float(cosines.min()) if len(cosines) else 1.0
