"""What a subset of a tenth or a quarter gives after the steps of 30 epochs on it.

Three rows a budget and seed, all with the same steps, initialisation and augmentation: a random
subset balanced by class, ours (chosen by a model that one epoch on all images has warmed up), and
all images under the shorter schedule. A piece is one trained network.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

import sage_torch._core as _core
from benchmarks.accelerator.images import CLASSES
from benchmarks.accelerator.machine import Machine, Piece
from benchmarks.accelerator.selection import on_host
from benchmarks.accelerator.training import Training, accuracy, batch_of
from sage_torch import select_subset

KEEPS, EPOCHS, SEEDS = (0.1, 0.25), 30, 3
TINY_KEEPS, TINY_EPOCHS, TINY_SEEDS = (0.25,), 4, 1
RANDOM, OURS, FULL = "class-balanced random", "SAGE (default)", "all images, shorter schedule"


class Contest:
    """One seed: the rules meet the same warm-up, initialisation and steps."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine, self.seed = machine, seed

    def piece(self, rule: str, keep: float) -> dict[str, Any]:
        """Choose, train, evaluate."""
        machine, images = self.machine, self.machine.images
        k = round(keep * len(images))
        epochs = TINY_EPOCHS if machine.is_tiny else EPOCHS
        steps = epochs * max(1, k // batch_of(machine))
        chosen: list[NDArray[np.int64]] = []
        warm_up = 0.0
        if rule == OURS:  # both are made ahead: neither belongs to the choice
            (_, warm_up), _ = self._warm_up, self._data
        choosing = machine.seconds(lambda: chosen.append(self._chosen(rule, keep, k)))
        training = Training(machine, steps, self.seed)
        seconds = machine.seconds(lambda: training.run(chosen[0]))
        return {
            "rule": rule,
            "keep": keep,
            "seed": self.seed,
            "images": images.name,
            "examples": len(chosen[0]),
            "steps": steps,
            "accuracy": accuracy(machine, training.model, images),
            "seconds_of": {"warm_up": warm_up, "selection": choosing, "training": seconds},
        }

    @cached_property
    def _warm_up(self) -> tuple[nn.Module, float]:
        """A model after an epoch on all images, and what it cost."""
        images = self.machine.images
        training = Training(self.machine, len(images) // batch_of(self.machine), self.seed)
        seconds = self.machine.seconds(lambda: training.run(np.arange(len(images))))
        return training.model, seconds

    @cached_property
    def _data(self) -> TensorDataset:
        return on_host(self.machine)

    def _chosen(self, rule: str, keep: float, k: int) -> NDArray[np.int64]:
        if rule == FULL:
            return np.arange(len(self.machine.images))
        if rule == RANDOM:
            return balanced(self.machine.images.labels.cpu().numpy(), k, self.seed)
        with self.machine.autocast():
            return select_subset(
                self._warm_up[0], self._data, keep, seed=self.seed, progress=False
            ).indices


def pieces(machine: Machine) -> dict[str, Piece]:
    """Return a piece for each seed, budget and rule; one seed after another."""
    keeps, seeds = (TINY_KEEPS, TINY_SEEDS) if machine.is_tiny else (KEEPS, SEEDS)
    found: dict[str, Piece] = {}
    for seed in range(seeds):
        contest = Contest(machine, seed)
        for keep in keeps:
            for rule in (RANDOM, OURS, FULL):
                name = f"seed {seed}, keep {keep:g}, {rule}"
                found[name] = partial(contest.piece, rule, keep)
    return found


def balanced(labels: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    """Return k random examples, as many of each class as its share."""
    random = np.random.default_rng((seed, 2))
    quotas = _core.class_quotas(np.bincount(labels, minlength=CLASSES), k)
    parts = [
        random.permutation(np.flatnonzero(labels == one))[:quota]
        for one, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(parts))
