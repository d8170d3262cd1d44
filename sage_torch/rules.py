"""From scores and sketched gradients to a subset: which rule runs, and what it leaves behind.

Rules that compare examples with each other run shard by shard, on the rank that has the shard's
sketched gradients; rules that read scores only, on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sage_torch import _core
from sage_torch.classes import ClassBook
from sage_torch.draws import Draws
from sage_torch.options import STREAMED, Options
from sage_torch.pass_2 import Scored
from sage_torch.shards import Shard
from sage_torch.task import Task

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
    """The same of one shard, its indices those of the data set."""

    indices: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    order: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None
    trimmed: int
    # Untrimmed examples, by class, that none of the shard's own stands for.
    left_alone: NDArray[np.int64]


def quotas_of_shards(
    classes: ClassBook, quotas: NDArray[np.int64], shards: Sequence[Shard]
) -> NDArray[np.int64]:
    """Return how many of each class to keep in each shard, (S, C); they add up to `quotas` (C,)."""
    counts = np.stack([classes.sizes(shard.places) for shard in shards])
    parts = np.zeros_like(counts)
    for class_id in np.flatnonzero(quotas):
        parts[:, class_id] = _core.class_quotas(counts[:, class_id].copy(), quotas[class_id])
    return parts


def stream_for(
    options: Options, counts: NDArray[np.int64], quotas: NDArray[np.int64]
) -> _core.BlockStream | None:
    """Return what gets a shard's batches in a streaming pass 2; None for rules of scores only.

    Args:
        options: `rule`, `draw`, `trim`, `weights`, `sketch_size`.
        counts: int64 (C,), the shard's examples of each class.
        quotas: int64 (C,), how many of them to keep.
    """
    if options.rule not in STREAMED or options.draw == "random":
        return None
    is_order = options.draw == "rotate"
    return _core.BlockStream(
        counts,
        quotas,
        width=options.sketch_size,
        trim=options.trim,
        rule="herding" if options.rule == "herding" else "facility_location",
        whole_order=is_order,
        weights=options.weights,
        block_size=_ORDER_BLOCK if is_order else _STREAM_BLOCK,
    )


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
        streams: What has seen the batches of a streaming pass 2 (see `stream_for`), one for each of
            this rank's shards; empty in the exact mode.

    Returns:
        The subset; with a draw that of epoch 0, and the draws.

    Raises:
        ValueError: The data set changed between the passes.
        SageError: Another rank failed.
    """
    options = task.options
    if _compares_examples(options):
        parts = task.ranks.together(lambda: _pick_in_shards(task, scored, classes, quotas, streams))
        return _joined(task, parts, classes, quotas)
    class_ids = classes.of(slice(None))
    trim = None if options.rule == "agreement" else options.trim  # the paper's rule trims nothing
    left = _core.untrimmed(scored.margins, class_ids, quotas, trim=trim)
    trimmed = len(class_ids) - len(left)
    if options.draw == "random":
        return _drawn(draws_of(left, class_ids, quotas, "random", options.seed), trimmed)
    if options.rule == "agreement":
        indices = _core.top_k(scored.scores, class_ids, quotas)
    else:
        places = _OF_SCORES[options.rule](
            scored.agreement[left], class_ids[left], quotas, trim=None, seed=options.seed
        )
        indices = left[places]
    if not options.weights:
        return Chosen(indices, None, None, trimmed)
    parts = task.ranks.together(
        lambda: [_weigh_in_shard(task, scored, classes, shard, left, indices) for shard in task.own]
    )
    return Chosen(indices, _joined(task, parts, classes, quotas).weights, None, trimmed)


def _compares_examples(options: Options) -> bool:
    """Whether the rule reads sketched gradients: all but a random draw of what was herded."""
    return options.rule in _OF_COORDINATES and options.draw != "random"


def _pick_in_shards(
    task: Task,
    scored: Scored,
    classes: ClassBook,
    quotas: NDArray[np.int64],
    streams: Sequence[_core.BlockStream | None],
) -> list[_Picked]:
    of_shards = quotas_of_shards(classes, quotas, task.shards)
    picked = []
    for place, shard in enumerate(task.own):
        stream, mine = streams[place] if streams else None, of_shards[shard.number]
        if stream is not None:
            picked.append(_picked_of(stream, task, scored, classes, mine, shard))
        else:
            picked.append(_pick(task, scored, classes, mine, shard))
    return picked


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


def _pick(
    task: Task,
    scored: Scored,
    classes: ClassBook,
    quotas: NDArray[np.int64],
    shard: Shard,
) -> _Picked:
    options, rows = task.options, _rows_of(task, scored, shard)
    margins, class_ids = scored.margins[shard.places], classes.of(shard.places)
    if options.draw == "rotate":
        order, starts, of_blocks = _core.herding_order(
            rows,
            margins,
            class_ids,
            quotas,
            trim=options.trim,
            block_size=_ORDER_BLOCK,
            seed=options.seed,
        )
        return _ordered(shard, order + shard.start, starts, of_blocks)
    indices = _OF_COORDINATES[options.rule](
        rows, margins, class_ids, quotas, trim=options.trim, seed=options.seed
    )
    left = _core.untrimmed(margins, class_ids, quotas, trim=options.trim)
    if options.weights:
        return _weigh_in_shard(
            task, scored, classes, shard, left + shard.start, indices + shard.start
        )
    return _Picked(indices + shard.start, None, None, len(shard) - len(left), np.zeros_like(quotas))


def _picked_of(
    stream: _core.BlockStream,
    task: Task,
    scored: Scored,
    classes: ClassBook,
    quotas: NDArray[np.int64],
    shard: Shard,
) -> _Picked:
    options = task.options
    if options.draw == "rotate":
        return _ordered(shard, *stream.finish_order())
    indices, weights = stream.finish()
    left_alone = np.zeros_like(quotas)
    if options.weights:
        class_ids = classes.of(shard.places)
        left = _core.untrimmed(scored.margins[shard.places], class_ids, quotas, trim=options.trim)
        counts = np.bincount(class_ids[left], minlength=len(quotas))
        left_alone = np.where(quotas == 0, counts, 0)
    return _Picked(indices, weights, None, stream.trimmed, left_alone)


def _weigh_in_shard(
    task: Task,
    scored: Scored,
    classes: ClassBook,
    shard: Shard,
    left: NDArray[np.int64],
    indices: NDArray[np.int64],
) -> _Picked:
    """Count what each kept example of a shard stands for there (exact mode).

    Args:
        task: `options.seed`.
        scored: Coordinates of this rank's shards.
        classes: The class of every example.
        shard: One of this rank's.
        left: int64, ascending, what the trim leaves, of this shard or of more.
        indices: int64, ascending, what is kept of it.
    """
    class_ids = classes.of(shard.places)
    mine, kept = (
        part[(part >= shard.start) & (part < shard.stop)] - shard.start for part in (left, indices)
    )
    has_kept = np.bincount(class_ids[kept], minlength=classes.count) > 0
    stood_for = mine[has_kept[class_ids[mine]]]
    weights = _core.weights(
        _rows_of(task, scored, shard),
        class_ids,
        classes.count,
        stood_for,
        kept,
        seed=task.options.seed,
    )
    counts = np.bincount(class_ids[mine], minlength=classes.count)
    return _Picked(
        kept + shard.start, weights, None, len(shard) - len(mine), np.where(has_kept, 0, counts)
    )


def _ordered(
    shard: Shard,
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    of_blocks: NDArray[np.int64],
) -> _Picked:
    nothing = np.empty(0, np.int64)
    trimmed = len(shard) - len(order)
    return _Picked(nothing, None, (order, starts, of_blocks), trimmed, nothing)


def _joined(
    task: Task, parts: list[_Picked], classes: ClassBook, quotas: NDArray[np.int64]
) -> Chosen:
    """Return what all shards' picks come to, the same on every rank."""
    picked = [part for of_rank in task.ranks.gather(parts) for part in of_rank]
    trimmed = sum(part.trimmed for part in picked)
    if task.options.draw == "rotate":
        blocks: list[tuple[int, NDArray[np.int64]]] = []
        for part in picked:
            assert part.order is not None
            order, starts, of_blocks = part.order
            pieces = np.split(order, starts[1:-1])
            blocks += zip(of_blocks.tolist(), pieces, strict=True)
        blocks.sort(key=lambda block: block[0])  # stable: in a class by shard
        draws = Draws(
            draw="rotate",
            order=np.concatenate([members for _, members in blocks]),
            starts=np.cumsum([0, *(len(members) for _, members in blocks)]),
            classes=np.array([class_id for class_id, _ in blocks], np.int64),
            quotas=quotas,
            seed=task.options.seed,
            is_herded=True,
        )
        return _drawn(draws, trimmed)
    indices = np.concatenate([part.indices for part in picked])  # ascending, as shards are
    if not task.options.weights:
        return Chosen(indices, None, None, trimmed)
    weights = np.concatenate([part.weights for part in picked if part.weights is not None])
    # In a shard that keeps none of a class, its examples are shared by those kept elsewhere.
    class_ids = classes.of(slice(None))[indices]
    stood_for = np.bincount(class_ids, weights=weights, minlength=len(quotas))
    alone = np.sum([part.left_alone for part in picked], axis=0)
    share = 1 + np.divide(alone, stood_for, out=np.zeros(len(quotas)), where=stood_for > 0)
    return Chosen(indices, (weights * share[class_ids]).astype(np.float32), None, trimmed)


def _rows_of(task: Task, scored: Scored, shard: Shard) -> NDArray[np.float32]:
    assert scored.coordinates is not None  # `Options.is_streaming` has refused
    first = task.own_places.start
    return scored.coordinates[shard.start - first : shard.stop - first]


def _drawn(draws: Draws, trimmed: int) -> Chosen:
    return Chosen(draws.epoch(0), None, draws, trimmed)
