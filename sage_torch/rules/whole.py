"""Rules that choose when all scores are there: by scores, at random, or on all coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.options import Options
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.reading.classes import ClassBook
from sage_torch.rules.chosen import Chosen
from sage_torch.rules.trimming import Trimming
from sage_torch.selection.draws import Draws

_BY_MARGIN = Trimming()
ORDER_BLOCK = 512  # examples herded together if all of them are put in order


@dataclass(frozen=True)
class _OnScores:
    """A rule that needs no batch before all scores are known."""

    class_ids: NDArray[np.int32]  # (N,) of groups
    quotas: NDArray[np.int64]  # (C,)
    options: Options
    trimming: Trimming = _BY_MARGIN

    def take(self, batch: ScoredBatch) -> None:
        """Ignore the batch."""

    def untrimmed(self, scored: Scored) -> NDArray[np.int64]:
        """Return the examples that may be chosen, int64 (M,) ascending."""
        read = self.trimming.read(scored)
        return _core.untrimmed(read, self.class_ids, self.quotas, trim=self.options.trim)


class Agreement(_OnScores):
    """The paper's rule: the highest scores of each class. It trims nothing."""

    def untrimmed(self, scored: Scored) -> NDArray[np.int64]:
        """Return all examples."""
        return np.arange(len(self.class_ids))

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        indices = _core.top_k(scored.scores, self.class_ids, self.quotas)
        order = indices[np.argsort(-scored.scores[indices], kind="stable")]
        return Chosen.in_order(order, 0, settings=self.trimming.settings(scored))


class RandomDraws(_OnScores):
    """A new random subset of the untrimmed examples in each epoch."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        left = self.untrimmed(scored)
        draws = draws_of(left, self.class_ids, self.quotas, "random", self.options.seed)
        settings = self.trimming.settings(scored)
        trimmed = len(self.class_ids) - len(left)
        return Chosen(draws.epoch(0), trimmed, draws, settings=settings)


class Herding(_OnScores):
    """Trim, then greedy kernel herding within each class, on all coordinates."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        if self.options.draw == "rotate":
            return self._turns(scored)
        order = _core.herding(
            scored.coordinates,
            self.trimming.read(scored),
            self.class_ids,
            self.quotas,
            trim=self.options.trim,
            masses=self.trimming.masses(scored),
            seed=self.options.seed,
        )
        trimmed = len(self.class_ids) - len(self.untrimmed(scored))
        return Chosen.in_order(order, trimmed, settings=self.trimming.settings(scored))

    def _turns(self, scored: Scored) -> Chosen:
        order, starts, of_blocks = _core.herding_order(
            scored.coordinates,
            self.trimming.read(scored),
            self.class_ids,
            self.quotas,
            trim=self.options.trim,
            block_size=ORDER_BLOCK,
            seed=self.options.seed,
        )
        seed, trimmed = self.options.seed, len(self.class_ids) - len(order)
        draws = Draws("rotate", order, starts, of_blocks, self.quotas, seed, is_herded=True)
        settings = self.trimming.settings(scored)
        return Chosen(draws.epoch(0), trimmed, draws, settings=settings)


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
