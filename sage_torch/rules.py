"""Rules turn scores and sketched gradients into a subset: one object per rule.

A rule gets batches while they are scored (`take`; only herding in streaming mode uses them), and
chooses when all scores are known (`finish`). It gives every rank the same subset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.options import Options
from sage_torch.passes.job import Job
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.reading.classes import ClassBook
from sage_torch.selection.draws import Draws

_ORDER_BLOCK = 512  # examples herded together if all of them are put in order
_STREAM_BLOCK = 1024  # the same on a stream if only the quota is picked


@dataclass(frozen=True)
class Chosen:
    """The subset that a rule has chosen."""

    indices: NDArray[np.int64]  # (k,) ascending
    trimmed: int  # examples that the trim dropped
    draws: Draws | None = None  # None for draw="fixed"
    weights: NDArray[np.float32] | None = None  # (k,)


class Rule(Protocol):
    """Turns scores into a subset."""

    def take(self, batch: ScoredBatch) -> None:
        """Take a batch of this rank while streaming."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset.

        Raises:
            ValueError: The data set changed between the passes.
            SageError: Another rank failed.
        """
        ...


def rule_for(job: Job, classes: ClassBook, quotas: NDArray[np.int64], width: int) -> Rule:
    """Return the rule that the options name.

    Args:
        job: `options.rule`, `draw`, `trim`, `weights`, `seed`; the mode; the shards.
        classes: The class and the group of every example.
        quotas: int64 (C,), how many of each group to keep.
        width: Rows l of the sketch.
    """
    if trims_nothing(job.options, classes):
        job = replace(job, options=replace(job.options, trim=None))
    options, class_ids = job.options, classes.groups()
    if options.rule == "agreement":
        return Agreement(class_ids, quotas, options)
    if options.draw == "random":
        return RandomDraws(class_ids, quotas, options)
    if job.mode.is_streaming:
        return HerdingInBlocks(job, classes, quotas, width)
    return Herding(class_ids, quotas, options)


def trims_nothing(options: Options, classes: ClassBook) -> bool:
    """Return whether a trim of negative margins has nothing to go by.

    With one consensus for all, the trim would drop whatever opposes the majority: the rarer of two
    classes, one sign of a regression's residuals, the smaller of two domains.
    """
    return options.trim == "negative" and classes.count < 2


@dataclass(frozen=True)
class _OnScores:
    """A rule that needs no batch before all scores are known."""

    class_ids: NDArray[np.int32]  # (N,) of groups
    quotas: NDArray[np.int64]  # (C,)
    options: Options

    def take(self, batch: ScoredBatch) -> None:
        """Ignore the batch."""

    def _untrimmed(self, scored: Scored) -> NDArray[np.int64]:
        return _core.untrimmed(scored.margins, self.class_ids, self.quotas, trim=self.options.trim)

    def _chosen(
        self, scored: Scored, left: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> Chosen:
        """Return one subset, with weights if the options want them."""
        weights, trimmed = None, len(self.class_ids) - len(left)
        if self.options.weights:
            classes, seed = len(self.quotas), self.options.seed
            weights = _core.weights(
                scored.coordinates, self.class_ids, classes, left, indices, seed=seed
            )
        return Chosen(indices, trimmed, weights=weights)


class Agreement(_OnScores):
    """The paper's rule: the highest scores of each class. It trims nothing."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        everything = np.arange(len(self.class_ids))
        indices = _core.top_k(scored.scores, self.class_ids, self.quotas)
        return self._chosen(scored, everything, indices)


class RandomDraws(_OnScores):
    """A new random subset of the untrimmed examples in each epoch."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        left = self._untrimmed(scored)
        draws = draws_of(left, self.class_ids, self.quotas, "random", self.options.seed)
        return Chosen(draws.epoch(0), len(self.class_ids) - len(left), draws)


class Herding(_OnScores):
    """Trim, then greedy kernel herding within each class, on all coordinates."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        if self.options.draw == "rotate":
            return self._in_order(scored)
        indices = _core.herding(
            scored.coordinates,
            scored.margins,
            self.class_ids,
            self.quotas,
            trim=self.options.trim,
            seed=self.options.seed,
        )
        return self._chosen(scored, self._untrimmed(scored), indices)

    def _in_order(self, scored: Scored) -> Chosen:
        order, starts, of_blocks = _core.herding_order(
            scored.coordinates,
            scored.margins,
            self.class_ids,
            self.quotas,
            trim=self.options.trim,
            block_size=_ORDER_BLOCK,
            seed=self.options.seed,
        )
        seed, trimmed = self.options.seed, len(self.class_ids) - len(order)
        draws = Draws("rotate", order, starts, of_blocks, self.quotas, seed, is_herded=True)
        return Chosen(draws.epoch(0), trimmed, draws)


_Order = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # order, starts, classes


@dataclass(frozen=True)
class _Picked:
    """The picks of herding in one shard."""

    trimmed: int
    indices: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    left_alone: NDArray[np.int64] | None = None  # (C,) without a pick in the shard
    order: _Order | None = None


class HerdingInBlocks:
    """Herding on a stream: block by block and shard by shard, without all coordinates."""

    def __init__(self, job: Job, classes: ClassBook, quotas: NDArray[np.int64], width: int) -> None:
        self._job, self._quotas = job, quotas
        self._class_ids = classes.groups()
        self._is_order = job.options.draw == "rotate"
        self._of_shards = self._quotas_of_shards()
        self._streams = {
            shard.number: _core.BlockStream(
                classes.sizes(shard.places),
                self._of_shards[shard.number],
                width=width,
                trim=job.options.trim,
                whole_order=self._is_order,
                weights=job.options.weights,
                block_size=_ORDER_BLOCK if self._is_order else _STREAM_BLOCK,
            )
            for shard in job.own
        }

    def take(self, batch: ScoredBatch) -> None:
        """Put a batch's examples into their blocks; herd full blocks."""
        stream = self._streams[batch.shard.number]
        groups = self._class_ids[batch.indices]
        stream.add(batch.coordinates, batch.margins, groups, batch.indices)

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        job = self._job
        parts = job.ranks.gather(
            job.ranks.together(lambda: [self._picked(shard.number, scored) for shard in job.own])
        )
        picked = [part for of_rank in parts for part in of_rank]
        trimmed = sum(part.trimmed for part in picked)
        if self._is_order:
            draws = self._joined([part.order for part in picked if part.order is not None])
            return Chosen(draws.epoch(0), trimmed, draws)
        indices = np.concatenate([part.indices for part in picked])  # ascending, as shards are
        weights = self._weights(picked, indices) if job.options.weights else None
        return Chosen(indices, trimmed, weights=weights)

    def _quotas_of_shards(self) -> NDArray[np.int64]:
        """Return how many of each class to keep in each shard, (S, C); they add up to quotas."""
        ids, classes = self._class_ids, len(self._quotas)
        counts = np.stack([np.bincount(ids[s.places], minlength=classes) for s in self._job.shards])
        parts = np.zeros_like(counts)
        for class_id in np.flatnonzero(self._quotas):
            of_class = counts[:, class_id].copy()
            parts[:, class_id] = _core.class_quotas(of_class, self._quotas[class_id])
        return parts

    def _picked(self, number: int, scored: Scored) -> _Picked:
        stream = self._streams[number]
        if self._is_order:
            order = stream.finish_order()
            return _Picked(stream.trimmed, np.empty(0, np.int64), order=order)
        indices, weights = stream.finish()
        left_alone = None
        if weights is not None:
            places, quotas = self._job.shards[number].places, self._of_shards[number]
            ids, trim = self._class_ids[places], self._job.options.trim
            left = _core.untrimmed(scored.margins[places], ids, quotas, trim=trim)
            counts = np.bincount(ids[left], minlength=len(quotas))
            left_alone = np.where(quotas == 0, counts, 0)
        return _Picked(stream.trimmed, indices, weights, left_alone)

    def _weights(self, picked: list[_Picked], indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return all weights; a shard that keeps none of a class gives its examples to the rest."""
        weights = np.concatenate([part.weights for part in picked if part.weights is not None])
        alone = sum(part.left_alone for part in picked if part.left_alone is not None)
        kept_ids, classes = self._class_ids[indices], len(self._quotas)
        stood_for = np.bincount(kept_ids, weights=weights, minlength=classes)
        share = 1 + np.divide(alone, stood_for, out=np.zeros(classes), where=stood_for > 0)
        all_weights: NDArray[np.float32] = (weights * share[kept_ids]).astype(np.float32)
        return all_weights

    def _joined(self, orders: list[_Order]) -> Draws:
        blocks: list[tuple[int, NDArray[np.int64]]] = []
        for order, starts, of_blocks in orders:
            blocks += zip(of_blocks.tolist(), np.split(order, starts[1:-1]), strict=True)
        blocks.sort(key=lambda block: block[0])  # stable: within a class by shard
        return Draws(
            draw="rotate",
            order=np.concatenate([members for _, members in blocks]),
            starts=np.cumsum([0, *(len(members) for _, members in blocks)]),
            classes=np.array([class_id for class_id, _ in blocks], np.int64),
            quotas=self._quotas,
            seed=self._job.options.seed,
            is_herded=True,
        )


def choose_at_random(classes: ClassBook, quotas: NDArray[np.int64], options: Options) -> Chosen:
    """Apply `rule="random"`, which uses no scores and trims nothing."""
    class_ids = classes.groups()
    if options.draw == "fixed":
        return Chosen(_core.random_subset(class_ids, quotas, options.seed), 0)
    everything = np.arange(len(class_ids))
    draws = draws_of(everything, class_ids, quotas, options.draw, options.seed)
    return Chosen(draws.epoch(0), 0, draws)


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
        seed: Determines the draws.
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
