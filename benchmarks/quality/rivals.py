"""How each rule of `quality.py` chooses and trains, its own costs charged to it.

A fixed rule chooses once, with a model warmed up on all examples (for an epoch, if the condition
does not say otherwise), and a fresh network is trained on its subset. A dynamic rule chooses anew
every epoch, in one run of one network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sage_torch._core as _core
from benchmarks.quality.baselines import DYNAMIC, FIXED, WATCHED, Chosen, Task
from benchmarks.quality.trials import (
    BATCH,
    Condition,
    Indices,
    Problem,
    Trained,
    Training,
    clock,
    network,
)
from sage_torch import SageSampler, Selection
from sage_torch.options import Options
from sage_torch.passes.calibration import FirstReading
from sage_torch.reading.loading import Loading
from sage_torch.sampler.first_epoch import first_reading
from sage_torch.select import select

# Rules of the product that choose once, as `SageSampler` does: options of `select_subset`.
OURS: dict[str, dict[str, Any]] = {
    "sage": {},
    "sage, negative": {"trim": "negative"},
    "sage, nothing trimmed": {"trim": None},
    "sage, trim 0.1": {"trim": 0.1},
    "sage, trim 0.3": {"trim": 0.3},
    "agreement": {"rule": "agreement"},
}
# Rules of the product that choose every epoch: options of `SageSampler`.
ROTATIONS: dict[str, dict[str, Any]] = {
    "rotate": {},
    "rotate, refreshed": {"refresh_every": 4},
    # For long runs, with half of the data an epoch: an early reading knows little, and costs as
    # much as a late one.
    "rotate, late": {"warmup_epochs": 4},
    "rotate, refreshed rarely": {"refresh_every": lambda epoch: epoch in (1, 9, 29)},
}
# One epoch of warm-up shows no example twice: there is nothing to forget.
_NEEDS_EPOCHS = "forgetting"
FULL = "all data"  # with equal steps: all data with a shorter schedule
ALL_RULES = tuple(
    rule for rule in (FULL, *OURS, *FIXED, *ROTATIONS, *DYNAMIC) if rule != _NEEDS_EPOCHS
)


@dataclass
class Outcome:
    """A trained network, and the seconds of one CPU thread (of the clock with a GPU) it took."""

    trained: Trained
    k: int
    warm_up: float = 0.0
    selection: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WarmedUp:
    """A model after some epochs on all examples.

    Attributes:
        model: In evaluation mode.
        seconds: What the epochs cost.
        steps: How many they took.
        seen: float32 (epochs, N, C), the logits of the examples when they were trained on.
        first_reading: What `SageSampler` reads after the first of several epochs.
        first_seconds: What that cost.
    """

    model: torch.nn.Module
    seconds: float
    steps: int
    seen: NDArray[np.float32]
    first_reading: FirstReading | None
    first_seconds: float


@dataclass
class Contest:
    """One pool and seed: every rule meets the same examples, initialisation and warm-up."""

    condition: Condition
    problem: Problem
    seed: int
    quota_mode: str = "proportional"
    _warmed_up: dict[int, WarmedUp] = field(default_factory=dict)

    def run(self, rule: str, keep: float, steps: Callable[[int, int], int]) -> Outcome:
        """Choose `keep` of the examples by a rule, train, evaluate.

        Args:
            rule: One of `ALL_RULES`.
            keep: Share of the examples an epoch sees.
            steps: Of the run, from the number of examples an epoch sees and its first one sees.
        """
        count = len(self.problem)
        k = round(keep * count)
        if rule == FULL:
            return Outcome(self._fresh(steps(count, count), np.arange(count)), count)
        if rule in DYNAMIC:
            return self._dynamic(rule, k, steps(k, k))
        if rule in ROTATIONS:
            return self._rotate(rule, keep, k, steps(k, count))
        return self._fixed(rule, keep, k, steps(k, k))

    def _warm(self, epochs: int) -> WarmedUp:
        """Return a model after so many epochs on all examples; each is trained once."""
        if epochs not in self._warmed_up:
            count = len(self.problem)
            steps = max(1, epochs) * max(1, count // BATCH)
            training = Training(self.problem, self._network(), steps, self.seed)
            seen = np.empty((epochs, count, self.problem.classes), np.float32)
            first, first_seconds = None, 0.0
            for epoch in range(epochs):
                if epoch == 1:
                    start, asked = clock(), Options(0.5, seed=self.seed, progress=False)
                    first = first_reading(training.model, self.problem.dataset, asked, Loading())
                    first_seconds = clock() - start
                training.epoch(np.arange(count))
                seen[epoch] = training.logits.numpy()
            model, seconds, taken = training.model.eval(), training.seconds, training.taken
            warm = WarmedUp(model, seconds, taken, seen, first, first_seconds)
            self._warmed_up[epochs] = warm
        return self._warmed_up[epochs]

    def _fixed(self, rule: str, keep: float, k: int, steps: int) -> Outcome:
        warm = self._warm(WATCHED.get(rule, self.condition.warm_up_epochs))
        start = clock()
        details: dict[str, Any] = {}
        if rule in OURS:
            asked = OURS[rule] | {"quotas": self.quota_mode, "keep": keep, "seed": self.seed}
            options = Options.given(progress=False, **asked)
            selection = select(
                warm.model, self.problem.dataset, options, first_reading=warm.first_reading
            )
            start -= warm.first_seconds
            chosen = Chosen(selection.indices)
        else:
            images, labels = self.problem.images, self.problem.labels
            task = Task(warm.model, images, labels, self._quotas(k), self.seed, warm.seen)
            chosen = FIXED[rule](task)
        seconds = clock() - start
        if rule in OURS:
            details = self._of_noise(selection)
        needs_no_model = rule.startswith("random")
        details["wrong_kept"] = float(self.problem.is_wrong[chosen.indices].mean())
        steps = self._left(steps, 0 if needs_no_model else warm.steps, seconds)
        trained = self._fresh(steps, chosen.indices, chosen.weights)
        return Outcome(trained, k, 0.0 if needs_no_model else warm.seconds, seconds, details)

    def _left(self, steps: int, warm_up: int, seconds: float) -> int:
        """Return the steps that a fixed subset is trained for, after its warm-up and choice.

        Args:
            steps: What the run was to take.
            warm_up: Steps of the warm-up.
            seconds: What the choice took.
        """
        return steps  # all rules train for as many, and the table says what the choice cost

    def _dynamic(self, rule: str, k: int, steps: int) -> Outcome:
        labels = self.problem.labels.cpu().numpy()
        dynamic = DYNAMIC[rule](labels, self._quotas(k), seed=self.seed)
        training = Training(self.problem, self._network(), steps, self.seed)
        chosen_for = 0.0
        while not training.is_over:
            start = clock()
            share = training.taken / steps  # epochs differ in length: progress counts in steps
            chosen = dynamic.epoch(training.epochs, _epochs(training.epochs, share))
            chosen_for += clock() - start
            losses = training.epoch(chosen.indices, chosen.weights).numpy()
            seen = np.flatnonzero(~np.isnan(losses))
            dynamic.saw(seen, losses[seen])
        return Outcome(training.finish(None), k, 0.0, chosen_for)

    def _rotate(self, rule: str, keep: float, k: int, steps: int) -> Outcome:
        training = Training(self.problem, self._network(), steps, self.seed)
        sampler = SageSampler(
            training.model,
            self.problem.dataset,
            keep=keep,
            draw="rotate",
            quotas=self.quota_mode,
            seed=self.seed,
            progress=False,
            **{"warmup_epochs": self.condition.warm_up_epochs} | ROTATIONS[rule],
        )
        chosen_for, warm_up = 0.0, 0.0
        while not training.is_over:
            start = clock()
            indices = np.fromiter(sampler, np.int64)
            chosen_for += clock() - start
            training.epoch(indices)
            if training.epochs == sampler.warmup_epochs:
                warm_up = training.seconds
        if sampler.selection is None:
            raise ValueError(f"expected a selection within {steps} steps, but the warm-up took all")
        details = self._of_noise(sampler.selection)
        trained = training.finish(None)
        # The warm-up is a part of the run: its steps count as all others do.
        return Outcome(trained, k, 0.0, chosen_for, details | {"warm_up_within": warm_up})

    def _fresh(self, steps: int, indices: Indices, weights: Any = None) -> Trained:
        training = Training(self.problem, self._network(), steps, self.seed)
        return training.finish(lambda _: (indices, weights))

    def _network(self) -> torch.nn.Module:
        return network(self.condition, self.problem, self.seed)

    def _quotas(self, k: int) -> Indices:
        counts = np.bincount(self.problem.labels.cpu().numpy(), minlength=self.problem.classes)
        return _core.class_quotas(counts, k, self.quota_mode)

    def _of_noise(self, selection: Selection) -> dict[str, Any]:
        """What the agreement says of wrong labels."""
        is_wrong = self.problem.is_wrong
        found: dict[str, Any] = {
            "trimmed": selection.settings["trimmed"],
            "rho": selection.settings.get("rho"),
            "seconds": selection.seconds,
        }
        if is_wrong.any() and selection.certificate is not None:
            from sklearn.metrics import roc_auc_score

            found["auroc"] = float(roc_auc_score(is_wrong, -selection.scores))
        return found


def _epochs(epoch: int, share: float) -> int:
    """Return how many epochs there will be, as far as can be told after this share of the steps."""
    return max(epoch + 1, round(epoch / share)) if share > 0 else 2**31
