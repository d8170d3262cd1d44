"""Pass 1: `batches -> per-example gradients -> sketch`.

Each shard is sketched by itself, and the sketches are merged in one fixed tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch._core import SageError
from sage_torch.gradients.outer import given_by, size_of
from sage_torch.options import Basis
from sage_torch.passes.growth import Growth
from sage_torch.passes.job import Task, naming_the_example
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.shards import MergeTree, Shard

_COLUMNS = 4  # of the coordinates, sorted at once


@dataclass(frozen=True)
class Sketched:
    """What pass 1 leaves behind, the same on every rank."""

    sketch: _core.FrequentDirections
    classes: ClassBook
    # (C, l) consensus of the streaming mode by basis; empty in the exact mode.
    directions: dict[Basis, NDArray[np.float64]]
    coordinates: NDArray[np.float32] | None  # (N, l) weighted, of the one-pass mode


def sketch_pass(task: Task) -> Sketched:
    """Pass 1: stream the gradients of all examples into one sketch.

    Args:
        task: `options.sketch_size`, `class_balanced`, `basis`; carried along with the sketch are a
            consensus in the streaming mode, every example's coordinates in the one-pass mode.

    Returns:
        Sketch, classes, and what was carried along.

    Raises:
        SageError: A loss or gradient is not finite; names the example's index. Another rank failed.

    Cost:
        One gradient an example and about 7 l d operations for the sketch; memory 4 l d bytes
        and 4 bytes an example (and C d numbers when streaming), log2(shards) times the sketch. In
        one pass 4 l bytes an example besides.
    """
    classes = ClassBook(task.examples.total, task.options.class_balanced)
    tree: MergeTree[_Part] = MergeTree(task.shards, task.ranks, _merged)
    title = "SAGE pass 1 of 1" if task.is_one_pass else "SAGE pass 1 of 2: sketch"
    with task.examples.progress(title, task.own) as bar:
        size, opened = _settled(task, classes, bar.update)

        def sketched(shard: Shard) -> _core.FrequentDirections:
            is_open = opened is not None and shard is task.shards[0]
            reading = opened if is_open else _sketching(task, shard, classes, bar.update, size)
            *_, sketch = reading  # type: ignore[misc]
            return sketch

        task.ranks.together(lambda: tree.build(sketched))
    _share_classes(task, classes)
    sketch = _joined(task, tree, classes)
    if task.snapshots is not None:
        task.snapshots.follow(sketch)
    order = classes.finish()
    directions = {
        basis: unit_rows(
            sketch.class_directions(orthonormal=basis == "orthonormal").cpu().numpy()[order]
        )
        for basis in task.bases
    }
    coordinates = _in_place(task, sketch.take_coordinates()) if task.is_one_pass else None
    return Sketched(sketch, classes, directions, coordinates)


def _settled(
    task: Task, classes: ClassBook, advance: Callable[[int], object]
) -> tuple[int, Iterator[_core.FrequentDirections] | None]:
    """Return how many rows all sketches get, and the reading of the first shard where it is open.

    Only `sketch_size="auto"` asks the first part of the first shard; other ranks wait for it.
    """
    if task.options.sketch_size != "auto":
        return task.options.sketch_size, None

    def ask() -> tuple[int, Iterator[_core.FrequentDirections] | None]:
        if task.ranks.rank != 0:
            return 0, None
        reading = _sketching(task, task.shards[0], classes, advance, None)
        return next(reading).sketch_size, reading

    size, reading = task.ranks.together(ask)
    return task.ranks.broadcast(size), reading


def _sketching(
    task: Task,
    shard: Shard,
    classes: ClassBook,
    advance: Callable[[int], object],
    size: int | None,
) -> Iterator[_core.FrequentDirections]:
    """Yield a shard's sketch once its size is settled, and once more when the shard has been read.

    Args:
        task: What is read, and how.
        shard: Which examples.
        classes: Their classes are noted there.
        advance: Hears how many examples have been read.
        size: Rows of the sketch; None where this shard decides.
    """
    sketch: _core.FrequentDirections | None = None
    done = 0
    growth = Growth(task, shard, classes, size)

    def resume(state: dict[str, Any], of_classes: dict[str, NDArray[Any]]) -> None:
        nonlocal sketch
        growth.check(len(state["sketch"]))
        indices = task.examples.indices(shard, 0, len(of_classes["ids"]))
        sketch = _sketch_of(task, state, classes.adopt(indices, of_classes))  # all or nothing

    if task.snapshots is not None:
        done = task.snapshots.sketch(shard, resume)
        advance(done)
    is_settled = False
    if sketch is not None and growth.is_settled(sketch):
        is_settled = True
        yield sketch
    batches = task.examples.batches(shard, begin=done) if done < len(shard) else ()
    for indices, batch, labels in batches:
        class_ids = classes.add(indices, labels)
        with naming_the_example(indices):
            rows = given_by(task.gradients, batch)
        if sketch is None:
            sketch = _new_sketch(task, *size_of(rows), growth.first_rows)
        growth.update(sketch, rows, class_ids if task.is_streaming else None, indices)
        done += len(indices)
        advance(len(indices))
        if task.snapshots is not None:
            task.snapshots.save_sketch(
                shard,
                done,
                sketch,
                lambda done=done: classes.part(task.examples.indices(shard, 0, done)),  # type: ignore[misc]
            )
        if not is_settled and growth.is_settled(sketch):
            is_settled = True
            yield sketch
    assert sketch is not None  # no shard is empty
    yield sketch


def _new_sketch(task: Task, dim: int, device: torch.device, size: int) -> _core.FrequentDirections:
    sketch = _core.FrequentDirections(size, dim, device=device)
    for basis in task.bases:
        sketch.carry_consensus(orthonormal=basis == "orthonormal")
    if task.is_one_pass:
        sketch.carry_coordinates()
    return sketch


def _sketch_of(
    task: Task, state: dict[str, Any], positions: NDArray[np.int32]
) -> _core.FrequentDirections:
    """Return the sketch that gave a state, with the class ids of this rank's book.

    Args:
        task: Where rows will come from.
        state: A `state_dict`.
        positions: int32 (C,), the id here of each class id there.
    """
    moved = []
    for orthonormal, sums in state["consensus"]:
        ours = sums.new_zeros((int(positions.max()) + 1, sums.shape[1]))
        seen = min(len(sums), len(positions))  # a sketch has rows for the classes that it saw
        ours[torch.from_numpy(positions[:seen]).long()] = sums[:seen]
        moved.append((orthonormal, ours))
    waiting = state["pending_ids"]
    if waiting and not 0 <= min(waiting) <= max(waiting) < len(positions):
        raise ValueError(f"expected class ids in [0, {len(positions)}) of the waiting rows")
    waiting = [int(positions[id_there]) for id_there in waiting]
    device = torch.device("cpu") if task.device is None else task.device
    size, dim = state["sketch"].shape
    sketch = _new_sketch(task, dim, device, size)
    sketch.load_state_dict(state | {"consensus": moved, "pending_ids": waiting})
    return sketch


def _share_classes(task: Task, classes: ClassBook) -> None:
    """Tell every rank the classes of all examples."""
    if task.ranks.size == 1:
        return
    parts = task.ranks.gather((task.own_places, classes.part(task.own_places)))
    for rank, (places, part) in enumerate(parts):
        if rank != task.ranks.rank and places.stop > places.start:
            classes.adopt(places, part)


_Part = _core.FrequentDirections | SageError  # what shards came to, or why nothing came of them


def _merged(first: _Part, second: _Part) -> _Part:
    """Return the sketch of both; an error where there is one, which all ranks will hear of."""
    for part in (first, second):
        if isinstance(part, SageError):
            return part
    try:
        first.merge(second)  # type: ignore[union-attr,arg-type]
    except (SageError, ValueError, RuntimeError) as error:
        return SageError(f"two shards' sketches cannot be merged: {error}")
    return first


def _joined(task: Task, tree: MergeTree[_Part], classes: ClassBook) -> _core.FrequentDirections:
    """Return the sketch of all shards, on every rank."""
    ranks = task.ranks

    def packed(part: _Part) -> dict[str, Any]:
        if isinstance(part, SageError):
            return {"error": str(part)}
        state = part.state_dict()
        state |= {name: state[name].cpu() for name in ("sketch", "pending")}
        state["consensus"] = [(basis, sums.cpu()) for basis, sums in state["consensus"]]
        return {"state": state, "classes": classes.part(slice(0, 0))}

    def unpacked(received: dict[str, Any]) -> _Part:
        if "error" in received:
            return SageError(received["error"])
        nothing = np.empty(0, np.int64)
        try:
            return _sketch_of(task, received["state"], classes.adopt(nothing, received["classes"]))
        except RuntimeError as error:  # memory, mostly
            return SageError(f"rank {ranks.rank} cannot take a sketch: {error}")

    whole = tree.join(
        send=lambda part, rank: ranks.send(packed(part), rank),
        receive=lambda rank: unpacked(ranks.receive(rank)),
    )
    if ranks.size > 1:
        sent = ranks.broadcast(None if whole is None else packed(whole))
        if whole is None:
            whole = unpacked(sent)  # type: ignore[arg-type]

    def checked() -> _core.FrequentDirections:
        if isinstance(whole, SageError):
            raise whole
        assert whole is not None  # rank 0 has it, and has sent it
        return whole

    return ranks.together(checked)


def _in_place(task: Task, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows (N, l), given as they were read, in the order of the data set."""
    for shard in task.shards:  # merged as neighbours: one after the other
        part = coordinates[shard.places]
        places = task.examples.indices(shard, 0, len(shard)) - shard.start
        for first in range(0, part.shape[1], _COLUMNS):  # a few, so that nothing is held twice
            columns = part[:, first : first + _COLUMNS]
            columns[places] = columns.copy()
    return coordinates


def label_pass(task: Task) -> ClassBook:
    """Read the labels only: all that `rule="random"` needs.

    Cost:
        One reading of the data set, no gradient.
    """
    classes = ClassBook(task.examples.total, task.options.class_balanced)

    def read() -> None:
        with task.examples.progress("SAGE: read labels", task.own) as bar:
            for shard in task.own:
                for indices, _, labels in task.examples.batches(shard):
                    classes.add(indices, labels)
                    bar.update(len(indices))

    task.ranks.together(read)
    _share_classes(task, classes)
    classes.finish()
    return classes


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return rows at length 1, in float64; a zero row stays zero."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    norms[norms == 0] = 1.0
    unit: NDArray[np.float64] = wide / norms
    return unit
