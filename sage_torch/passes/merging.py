"""Merges the shards' sketches in a fixed tree, across ranks where necessary."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch._core import SageError
from sage_torch.passes.job import Job
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.shards import MergeTree

# The sketch of some shards, or an error in its place, which all ranks will raise.
Part = _core.FrequentDirections | SageError


def tree_of(job: Job) -> MergeTree[Part]:
    """Return the tree in which the job's shards are merged."""
    return MergeTree(job.shards, job.ranks, _merged)


def _merged(first: Part, second: Part) -> Part:
    """Return the sketch of both, or the error of either."""
    for part in (first, second):
        if isinstance(part, SageError):
            return part
    try:
        first.merge(second)  # type: ignore[union-attr,arg-type]
    except (SageError, ValueError, RuntimeError) as error:
        return SageError(f"two shards' sketches cannot be merged: {error}")
    return first


def joined(job: Job, tree: MergeTree[Part], classes: ClassBook) -> _core.FrequentDirections:
    """Return the sketch of all shards, on every rank.

    Raises:
        SageError: Sketches cannot be merged, or a rank has failed.
    """
    ranks = job.ranks

    def packed(part: Part) -> dict[str, Any]:
        if isinstance(part, SageError):
            return {"error": str(part)}
        state = part.state_dict()
        names = ("sketch", "pending", "consensus")
        state |= {name: state[name].cpu() for name in names if state[name] is not None}
        return {"state": state, "classes": classes.part(slice(0, 0))}

    def unpacked(received: dict[str, Any]) -> Part:
        if "error" in received:
            return SageError(received["error"])
        nothing = np.empty(0, np.int64)
        try:
            return sketch_of(job, received["state"], classes.adopt(nothing, received["classes"]))
        except RuntimeError as error:  # memory, mostly
            return SageError(f"rank {ranks.rank} cannot take a sketch: {error}")

    whole = tree.join(
        send=lambda part, rank: ranks.send(packed(part), rank),
        receive=lambda rank: unpacked(ranks.receive(rank)),
    )
    if ranks.size > 1:  # rank 0 has the whole, and sends it to the others
        sent = ranks.broadcast({} if whole is None else packed(whole))
        whole = unpacked(sent) if whole is None else whole

    def checked() -> _core.FrequentDirections:
        if not isinstance(whole, _core.FrequentDirections):
            raise SageError("no shard gave a sketch") if whole is None else whole
        return whole

    return ranks.together(checked)


def new_sketch(job: Job, dim: int, device: torch.device, rows: int) -> _core.FrequentDirections:
    """Return an empty sketch that carries along all that the mode needs."""
    sketch = _core.FrequentDirections(rows, dim, device=device)
    job.mode.begin(sketch)
    return sketch


def of_one_class(sketch: _core.FrequentDirections) -> _core.FrequentDirections:
    """Return a sketch that carries one consensus of all examples, where it carried several.

    Sums are carried, one per class: the sum of all examples is their sum.
    """
    state = sketch.state_dict()
    if len(state["consensus"]) <= 1 and not any(state["pending_ids"]):
        return sketch
    whole = _core.FrequentDirections(sketch.sketch_size, sketch.dim, device=sketch.device)
    whole.carry_consensus()
    whole.load_state_dict(_one_class(state))
    return whole


def _one_class(state: dict[str, Any]) -> dict[str, Any]:
    sums = state["consensus"]
    if sums is not None:
        sums = sums.sum(0, keepdim=True)
    return state | {"consensus": sums, "pending_ids": [0] * len(state["pending_ids"])}


def sketch_of(
    job: Job, state: dict[str, Any], positions: NDArray[np.int32]
) -> _core.FrequentDirections:
    """Return the sketch that gave a state, with the class ids of this rank's book.

    Args:
        job: Source of the rows, and the mode.
        state: A `state_dict`.
        positions: int32 (C,): for each class id in the state, the id here. With one, all examples
            are of one class, whatever the state says.

    Raises:
        ValueError: The state does not fit.
    """
    state = _one_class(state) if len(positions) == 1 else state
    sums = state["consensus"]
    if sums is not None:
        ours = sums.new_zeros((int(positions.max()) + 1, sums.shape[1]))
        seen = min(len(sums), len(positions))  # a sketch has sums only for classes that it saw
        ours[torch.from_numpy(positions[:seen]).long()] = sums[:seen]
        sums = ours
    waiting = state["pending_ids"]
    if waiting and not 0 <= min(waiting) <= max(waiting) < len(positions):
        raise ValueError(f"expected class ids in [0, {len(positions)}) of the waiting rows")
    waiting = [int(positions[id_there]) for id_there in waiting]
    device = torch.device("cpu") if job.device is None else job.device
    rows, dim = state["sketch"].shape
    sketch = new_sketch(job, dim, device, rows)
    sketch.load_state_dict(state | {"consensus": sums, "pending_ids": waiting})
    return sketch
