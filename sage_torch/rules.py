"""Rules turn scores and sketched gradients into a subset: one object per rule.

A rule gets batches while they are scored (`take`; only herding in streaming mode uses them), and
chooses when all scores are known (`finish`). It gives every rank the same subset.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.options import Options
from sage_torch.passes.job import Job
from sage_torch.passes.known import Known
from sage_torch.passes.rating import Rating
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.passes.sketching import Sketched
from sage_torch.passes.views import Views
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
    settings: dict[str, Any] = field(default_factory=dict)  # what the trim went by
    probabilities: NDArray[np.float32] | None = None  # (N,) of labels, if more than one reading's


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


def rule_for(job: Job, sketched: Sketched, quotas: NDArray[np.int64]) -> Rule:
    """Return the rule that the options name.

    Args:
        job: `options.rule`, `draw`, `trim`, `weights`, `seed`; the mode; the shards.
        sketched: The results of pass 1: the class and the group of every example, the readout.
        quotas: int64 (C,), how many of each group to keep.
    """
    classes = sketched.classes
    rating = _rating(job.options, sketched, quotas)
    trim = job.options.trim
    if trims_nothing(job.options, classes):
        trim = None
    elif trim == "auto":
        trim = "negative"  # margins, or what the rating puts in their place
    options, class_ids = replace(job.options, trim=trim), classes.groups()
    if options.rule == "agreement":
        return Agreement(class_ids, quotas, options)
    if options.draw == "rotate" and rating is not None and sketched.readout is not None:
        rho = sketched.readout.calibration.rho
        return Worth(class_ids, quotas, options, rating, rho, job.known)
    if options.draw == "random":
        return RandomDraws(class_ids, quotas, options, rating)
    if job.mode.is_streaming:
        width = Views.compared_width(sketched)
        return HerdingInBlocks(replace(job, options=options), classes, quotas, width, rating)
    return Herding(class_ids, quotas, options, rating)


def _rating(options: Options, sketched: Sketched, quotas: NDArray[np.int64]) -> Rating | None:
    readout, classes = sketched.readout, sketched.classes
    if readout is None:
        return None
    sizes = classes.sizes()
    shares = np.divide(quotas, sizes, out=np.ones(len(sizes)), where=sizes > 0)
    groups = classes.groups(readout.sample_places)
    return Rating.of(readout, groups, shares, has_budget=options.draw == "fixed")


def trims_nothing(options: Options, classes: ClassBook) -> bool:
    """Return whether a trim by classes has nothing to go by.

    With one consensus for all, the trim would drop whatever opposes the majority: the rarer of two
    classes, one sign of a regression's residuals, the smaller of two domains.
    """
    return options.trim in ("auto", "negative") and classes.count < 2


@dataclass(frozen=True)
class _OnScores:
    """A rule that needs no batch before all scores are known."""

    class_ids: NDArray[np.int32]  # (N,) of groups
    quotas: NDArray[np.int64]  # (C,)
    options: Options
    rating: Rating | None = None  # in place of margins

    def take(self, batch: ScoredBatch) -> None:
        """Ignore the batch."""

    def _untrimmed(self, scored: Scored) -> NDArray[np.int64]:
        trimmed_by = _trimmed_by(self.rating, scored, self.class_ids)
        return _core.untrimmed(trimmed_by, self.class_ids, self.quotas, trim=self.options.trim)

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
        settings = _settings(self.rating, scored, self.class_ids)
        return Chosen(indices, trimmed, weights=weights, settings=settings)


def _trimmed_by(
    rating: Rating | None, scored: Scored | ScoredBatch, groups: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return what the trim reads: below 0 goes."""
    if rating is None or scored.judged is None:
        return scored.margins
    return rating.quality(scored.judged, groups)


def _masses(rating: Rating | None, scored: Scored | ScoredBatch) -> NDArray[np.float32] | None:
    if rating is None or scored.judged is None:
        return None
    return rating.masses(scored.judged)


def _settings(rating: Rating | None, scored: Scored, groups: NDArray[np.int32]) -> dict[str, Any]:
    if rating is None or scored.judged is None:
        return {}
    by_noise, by_budget = rating.counts(scored.judged, groups)
    return {
        "threshold": rating.threshold,
        "trimmed_by_noise": by_noise,
        "trimmed_by_budget": by_budget,
    }


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
        settings = _settings(self.rating, scored, self.class_ids)
        trimmed = len(self.class_ids) - len(left)
        return Chosen(draws.epoch(0), trimmed, draws, settings=settings)


@dataclass(frozen=True)
class Worth(_OnScores):
    """A part of all examples in each epoch, each of them as often as its label is worth it."""

    rho: float = 0.0
    known: Known | None = None

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        assert self.rating is not None
        assert scored.judged is not None
        known = Known.of(scored.judged, self.rho, self.known)
        everything, seed = np.arange(len(self.class_ids)), self.options.seed
        plain = draws_of(everything, self.class_ids, self.quotas, "rotate", seed)
        hard, right = 1 - known.probabilities[plain.order], known.right[plain.order]
        draws = replace(plain, hard=hard, right=right, exponent=self.rating.exponent)
        return Chosen(
            draws.epoch(0),
            int((right == 0).sum()),
            draws,
            settings={"rho": known.rho, "readings": known.readings},
            probabilities=known.probabilities,
        )


class Herding(_OnScores):
    """Trim, then greedy kernel herding within each class, on all coordinates."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        if self.options.draw == "rotate":
            return self._in_order(scored)
        indices = _core.herding(
            scored.coordinates,
            _trimmed_by(self.rating, scored, self.class_ids),
            self.class_ids,
            self.quotas,
            trim=self.options.trim,
            masses=_masses(self.rating, scored),
            seed=self.options.seed,
        )
        return self._chosen(scored, self._untrimmed(scored), indices)

    def _in_order(self, scored: Scored) -> Chosen:
        order, starts, of_blocks = _core.herding_order(
            scored.coordinates,
            _trimmed_by(self.rating, scored, self.class_ids),
            self.class_ids,
            self.quotas,
            trim=self.options.trim,
            block_size=_ORDER_BLOCK,
            seed=self.options.seed,
        )
        seed, trimmed = self.options.seed, len(self.class_ids) - len(order)
        draws = Draws("rotate", order, starts, of_blocks, self.quotas, seed, is_herded=True)
        settings = _settings(self.rating, scored, self.class_ids)
        return Chosen(draws.epoch(0), trimmed, draws, settings=settings)


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

    def __init__(
        self,
        job: Job,
        classes: ClassBook,
        quotas: NDArray[np.int64],
        width: int,
        rating: Rating | None,
    ) -> None:
        self._job, self._quotas, self._rating = job, quotas, rating
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
        trimmed_by = _trimmed_by(self._rating, batch, groups)
        masses = _masses(self._rating, batch)
        stream.add(batch.coordinates, trimmed_by, groups, batch.indices, masses=masses)

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        job = self._job
        parts = job.ranks.gather(
            job.ranks.together(lambda: [self._picked(shard.number, scored) for shard in job.own])
        )
        picked = [part for of_rank in parts for part in of_rank]
        trimmed = sum(part.trimmed for part in picked)
        settings = _settings(self._rating, scored, self._class_ids)
        if self._is_order:
            draws = self._joined([part.order for part in picked if part.order is not None])
            return Chosen(draws.epoch(0), trimmed, draws, settings=settings)
        indices = np.concatenate([part.indices for part in picked])  # ascending, as shards are
        weights = self._weights(picked, indices) if job.options.weights else None
        return Chosen(indices, trimmed, weights=weights, settings=settings)

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
            trimmed_by = _trimmed_by(self._rating, scored, self._class_ids)[places]
            left = _core.untrimmed(trimmed_by, ids, quotas, trim=trim)
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
