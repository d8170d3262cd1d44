"""From scores and sketched gradients to a subset: which rule runs, and what it leaves behind.

In the exact mode every rank has all scores and coordinates, and applies the rule to them. On a
stream, rules that compare examples with each other have picked shard by shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.options import STREAMED, Options
from sage_torch.passes.job import Task
from sage_torch.passes.scoring import Scored
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.shards import Shard
from sage_torch.selection.draws import Draws

_ORDER_BLOCK = 512  # examples herded together where all of them are put in order
_STREAM_BLOCK = 1024  # the same on a stream, where the quota alone is picked
_OF_SCORES = {"stratified": _core.stratified, "weighted": _core.weighted_subset}
_OF_COORDINATES = {"herding": _core.herding, "facility_location": _core.facility_location}


@dataclass(frozen=True)
class Chosen:
    """What a rule leaves behind."""

    indices: NDArray[np.int64]  # (k,) ascending
    weights: NDArray[np.float32] | None  # (k,)
    draws: Draws | None  # None for draw="fixed"
    trimmed: int  # examples that the trim dropped


@dataclass(frozen=True)
class _Picked:
    """The same of one shard of a stream."""

    indices: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    order: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None
    trimmed: int
    # (C,) untrimmed examples that none of the shard's own stands for.
    left_alone: NDArray[np.int64]


def quotas_of_shards(
    class_ids: NDArray[np.int32], quotas: NDArray[np.int64], shards: Sequence[Shard]
) -> NDArray[np.int64]:
    """Return how many of each class to keep in each shard, (S, C); they add up to `quotas` (C,)."""
    counts = np.stack([np.bincount(class_ids[s.places], minlength=len(quotas)) for s in shards])
    parts = np.zeros_like(counts)
    for class_id in np.flatnonzero(quotas):
        parts[:, class_id] = _core.class_quotas(counts[:, class_id].copy(), quotas[class_id])
    return parts


def streams_for(
    task: Task, classes: ClassBook, quotas: NDArray[np.int64], width: int
) -> list[_core.BlockStream | None]:
    """Return what gets the batches of each own shard in a streaming pass 2.

    Args:
        task: `options.rule`, `draw`, `trim`, `weights`.
        classes: The class of every example.
        quotas: int64 (C,), how many of each to keep.
        width: Rows l of the sketch.

    Returns:
        One a shard; None for rules that read scores only.
    """
    options = task.options
    if options.rule not in STREAMED or options.draw == "random":
        return [None for _ in task.own]
    is_order = options.draw == "rotate"
    of_shards = quotas_of_shards(classes.of(slice(None)), quotas, task.shards)
    return [
        _core.BlockStream(
            classes.sizes(shard.places),
            of_shards[shard.number],
            width=width,
            trim=options.trim,
            rule="herding" if options.rule == "herding" else "facility_location",
            whole_order=is_order,
            weights=options.weights,
            block_size=_ORDER_BLOCK if is_order else _STREAM_BLOCK,
        )
        for shard in task.own
    ]


def choose(
    task: Task,
    scored: Scored,
    classes: ClassBook,
    quotas: NDArray[np.int64],
    streams: Sequence[_core.BlockStream | None],
) -> Chosen:
    """Apply the rule.

    Args:
        task: `options.rule`, `trim`, `draw`, `weights`, `seed`, and the shards.
        scored: What pass 2 left behind.
        classes: The class of every example.
        quotas: int64 (C,), how many of each class to keep.
        streams: What has seen the batches of a streaming pass 2 (see `streams_for`), one for each
            of this rank's shards; empty in the exact mode.

    Returns:
        The subset; with a draw that of epoch 0, and the draws.

    Raises:
        ValueError: The data set changed between the passes.
        SageError: Another rank failed.
    """
    options, class_ids = task.options, classes.of(slice(None))
    if task.is_streaming and options.rule in STREAMED and options.draw != "random":
        return _from_streams(task, scored, class_ids, quotas, streams)
    if options.draw == "rotate":
        return _in_order(scored, class_ids, quotas, options)
    trim = None if options.rule == "agreement" else options.trim  # the paper's rule trims nothing
    left = _core.untrimmed(scored.margins, class_ids, quotas, trim=trim)
    trimmed = len(class_ids) - len(left)
    if options.draw == "random":
        return _drawn(draws_of(left, class_ids, quotas, "random", options.seed), trimmed)
    indices = _indices(scored, class_ids, quotas, left, options)
    weights = None
    if options.weights:
        assert scored.coordinates is not None  # `Options.is_streaming` has refused
        weights = _core.weights(
            scored.coordinates, class_ids, len(quotas), left, indices, seed=options.seed
        )
    return Chosen(indices, weights, None, trimmed)


def _indices(
    scored: Scored,
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    left: NDArray[np.int64],
    options: Options,
) -> NDArray[np.int64]:
    if options.rule == "agreement":
        return _core.top_k(scored.scores, class_ids, quotas)
    if options.rule in _OF_SCORES:
        places = _OF_SCORES[options.rule](
            scored.agreement[left], class_ids[left], quotas, trim=None, seed=options.seed
        )
        chosen: NDArray[np.int64] = left[places]
        return chosen
    assert scored.coordinates is not None  # kept whenever there is no stream
    return _OF_COORDINATES[options.rule](
        scored.coordinates,
        scored.margins,
        class_ids,
        quotas,
        trim=options.trim,
        seed=options.seed,
    )


def choose_at_random(classes: ClassBook, quotas: NDArray[np.int64], options: Options) -> Chosen:
    """Apply `rule="random"`, which knows no scores and trims nothing."""
    class_ids = classes.of(slice(None))
    if options.draw == "fixed":
        return Chosen(_core.random_subset(class_ids, quotas, options.seed), None, None, 0)
    everything = np.arange(len(class_ids))
    return _drawn(draws_of(everything, class_ids, quotas, options.draw, options.seed), 0)


def draws_of(
    left: NDArray[np.int64],
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    draw: Literal["rotate", "random"],
    seed: int,
) -> Draws:
    """Return draws without a herding order: each class is one block, ascending.

    Args:
        left: int64 (M,) ascending, the examples to draw from.
        class_ids: int32 (N,) of all examples.
        quotas: int64 (C,).
        draw: `"rotate"` or `"random"`.
        seed: Names the draws.
    """
    order = left[np.argsort(class_ids[left], kind="stable")]
    classes, starts = np.unique(class_ids[order], return_index=True)
    return Draws(
        draw=draw,
        order=order,
        starts=np.append(starts, len(order)),
        classes=classes.astype(np.int64),
        quotas=quotas,
        seed=seed,
        is_herded=False,
    )


def _from_streams(
    task: Task,
    scored: Scored,
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    streams: Sequence[_core.BlockStream | None],
) -> Chosen:
    """Return what all shards' picks come to, the same on every rank."""
    of_shards = quotas_of_shards(class_ids, quotas, task.shards)

    def finish() -> list[_Picked]:
        return [
            _picked(stream, task.options, scored.margins[shard.places], class_ids[shard.places],
                    of_shards[shard.number])
            for shard, stream in zip(task.own, streams, strict=True)
            if stream is not None
        ]  # fmt: skip

    parts = task.ranks.gather(task.ranks.together(finish))
    picked = [part for of_rank in parts for part in of_rank]
    trimmed = sum(part.trimmed for part in picked)
    if task.options.draw == "rotate":
        return _drawn(_joined_order(picked, quotas, task.options.seed), trimmed)
    indices = np.concatenate([part.indices for part in picked])  # ascending, as shards are
    if not task.options.weights:
        return Chosen(indices, None, None, trimmed)
    weights = np.concatenate([part.weights for part in picked if part.weights is not None])
    # In a shard that keeps none of a class, its examples are shared by those kept elsewhere.
    kept_ids = class_ids[indices]
    stood_for = np.bincount(kept_ids, weights=weights, minlength=len(quotas))
    alone = np.sum([part.left_alone for part in picked], axis=0)
    share = 1 + np.divide(alone, stood_for, out=np.zeros(len(quotas)), where=stood_for > 0)
    return Chosen(indices, (weights * share[kept_ids]).astype(np.float32), None, trimmed)


def _picked(
    stream: _core.BlockStream,
    options: Options,
    margins: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
) -> _Picked:
    left_alone = np.zeros_like(quotas)
    if options.draw == "rotate":
        order = stream.finish_order()
        return _Picked(np.empty(0, np.int64), None, order, stream.trimmed, left_alone)
    indices, weights = stream.finish()
    if options.weights:
        left = _core.untrimmed(margins, class_ids, quotas, trim=options.trim)
        counts = np.bincount(class_ids[left], minlength=len(quotas))
        left_alone = np.where(quotas == 0, counts, 0)
    return _Picked(indices, weights, None, stream.trimmed, left_alone)


def _joined_order(picked: list[_Picked], quotas: NDArray[np.int64], seed: int) -> Draws:
    blocks: list[tuple[int, NDArray[np.int64]]] = []
    for part in picked:
        assert part.order is not None
        order, starts, of_blocks = part.order
        blocks += zip(of_blocks.tolist(), np.split(order, starts[1:-1]), strict=True)
    blocks.sort(key=lambda block: block[0])  # stable: in a class by shard
    return Draws(
        draw="rotate",
        order=np.concatenate([members for _, members in blocks]),
        starts=np.cumsum([0, *(len(members) for _, members in blocks)]),
        classes=np.array([class_id for class_id, _ in blocks], np.int64),
        quotas=quotas,
        seed=seed,
        is_herded=True,
    )


def _in_order(
    scored: Scored,
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    options: Options,
) -> Chosen:
    assert scored.coordinates is not None  # kept whenever there is no stream
    order, starts, of_blocks = _core.herding_order(
        scored.coordinates,
        scored.margins,
        class_ids,
        quotas,
        trim=options.trim,
        block_size=_ORDER_BLOCK,
        seed=options.seed,
    )
    draws = Draws("rotate", order, starts, of_blocks, quotas, options.seed, is_herded=True)
    return _drawn(draws, len(class_ids) - len(order))


def _drawn(draws: Draws, trimmed: int) -> Chosen:
    return Chosen(draws.epoch(0), None, draws, trimmed)
