"""One trial of `quality.py`: a pool of examples, a small network, a number of steps.

Everything is a function of the seed: pool, wrong labels, warm-up, initialisation, order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.quality.models import resnet18
from benchmarks.quality.recipes import Recipe, Sizes, loaded, recipe

Indices = NDArray[np.int64]
# Weights (k,) have mean 1, so that the learning rate means the same with and without.
EpochSet = tuple[Indices, NDArray[np.float32] | None]
Split = Literal["validation", "test"]

BATCH = 64
NOISE_KINDS = ("symmetric", "pair", "some")
HELD_OUT = 10_000  # last examples of a seeded order of the training set: the validation split
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_EVALUATED_AT_ONCE = 1_000
_SPLIT_SEED = 2025


@dataclass(frozen=True)
class Condition:
    """What the learner is given.

    Attributes:
        data: A data set of `recipes.py`.
        noise: Share of labels that are wrong.
        noise_kind: `symmetric`: any other class; `pair`: the next class; `some`: any other class,
            but all wrong labels are on examples of the first half of the classes.
        imbalance: Size of the largest class over the smallest (1: as in the pool).
        split: What accuracy is measured on.
        pool: Training examples at most; 0 for all there are, on the test split those too that
            validation is measured on.
        network: `small`, or `resnet-18` (three channels; for a GPU).
        warm_up_epochs: On the whole pool, before a fixed rule chooses (0: with an untrained
            network), or before SAGE's rotation does, within its run.
    """

    data: str
    noise: float = 0.0
    noise_kind: str = "symmetric"
    imbalance: int = 1
    split: Split = "test"
    pool: int = 20_000
    network: str = "small"
    warm_up_epochs: int = 1


@dataclass(frozen=True)
class Problem:
    """A pool with labels as the learner sees them, inputs to evaluate on, and how to learn it.

    Inputs are called images, and are numbers of words where the data are text.
    """

    images: Tensor
    labels: Tensor
    is_wrong: NDArray[np.bool_]
    evaluation: TensorDataset
    classes: int
    sizes: Sizes
    recipe: Recipe

    @property
    def dataset(self) -> TensorDataset:
        """The pool as a data set."""
        return TensorDataset(self.images, self.labels)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Trained:
    """A trained network, what it cost (seconds of one CPU thread) and how right it is (in %)."""

    model: nn.Module
    seconds: float
    steps: int
    accuracy: float
    balanced_accuracy: float


def problem(condition: Condition, seed: int, data_root: Path | None) -> Problem:
    """Return the pool and the evaluation set of a condition and seed."""
    data = loaded(condition.data, data_root)
    images, labels = data.train.tensors
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    held_out = min(HELD_OUT, len(labels) // 5)
    source, validation = order[:-held_out], order[-held_out:]
    if condition.pool == 0 and condition.split == "test":
        source = order
    random = np.random.default_rng((seed, 1))
    pool = random.permutation(source)[: condition.pool or None]
    if condition.imbalance > 1:
        pool = _long_tail(pool, labels.numpy(), data.classes, condition.imbalance)
    seen, is_wrong = _with_noise(labels[pool].numpy(), data.classes, condition, random)
    if condition.split == "test":
        evaluation = data.test
    else:
        evaluation = TensorDataset(images[validation], labels[validation])
    return Problem(
        images=_laid_out(images[pool]).to(DEVICE),
        labels=torch.from_numpy(seen).to(DEVICE),
        is_wrong=is_wrong,
        evaluation=TensorDataset(*(part.to(DEVICE) for part in evaluation.tensors)),
        classes=data.classes,
        sizes=data.sizes,
        recipe=recipe(condition.data),
    )


def clock() -> float:
    """Seconds of this process on the CPU, whatever else runs there; with a GPU, of the wall."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def network(condition: Condition, problem: Problem, seed: int) -> nn.Module:
    """Return a fresh network for a pool, on the device; its initialisation is named by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (
            resnet18()
            if condition.network == "resnet-18"
            else problem.recipe.network(problem.sizes, problem.classes)
        )
    return model.to(DEVICE, memory_format=torch.channels_last)


class Training:
    """A network on its way: steps are taken in parts, under one learning-rate schedule.

    Args:
        problem: Pool and evaluation set.
        model: A fresh network.
        steps: Of the whole schedule (one cycle, annealed to the end).
        seed: Names the order.
    """

    def __init__(self, problem: Problem, model: nn.Module, steps: int, seed: int) -> None:
        self.problem, self.model, self.steps = problem, model, steps
        self.taken, self.epochs, self.seconds = 0, 0, 0.0
        # (N, C), of each example when it was last trained on; NaN where it was not.
        self.logits = torch.full((len(problem), problem.classes), torch.nan)
        self._seed = seed
        self._optimizer, self._schedule = problem.recipe.optimizer(model, steps)

    def epoch(self, indices: Indices, weights: NDArray[np.float32] | None = None) -> Tensor:
        """Train on these examples once, or until the steps are used up.

        A part of the examples that does not fill a batch is left out. Returns losses (N,), NaN
        where an example was not trained on.
        """
        start = clock()
        random = np.random.default_rng((self._seed, 2, self.epochs))
        places = random.permutation(len(indices))
        batch = min(BATCH, len(indices))
        losses = torch.full((len(self.problem),), torch.nan)
        self.model.train()
        for first in range(0, len(places) - batch + 1, batch):
            if self.taken == self.steps:
                break
            part = places[first : first + batch]
            chosen = torch.from_numpy(indices[part])
            images = self.problem.images[chosen]
            if self.problem.recipe.is_mirrored:
                is_turned = torch.from_numpy(random.random(batch) < 0.5)
                images[is_turned] = images[is_turned].flip(-1)
            labels = self.problem.labels[chosen]
            outputs = self.model(images)
            loss = cross_entropy(outputs, labels, reduction="none")
            losses[chosen] = loss.detach().cpu()
            self.logits[chosen] = outputs.detach().cpu()
            scale = 1.0 if weights is None else torch.from_numpy(weights[part]).to(DEVICE)
            self._optimizer.zero_grad()
            (loss * scale).mean().backward()
            self._optimizer.step()
            self._schedule.step()
            self.taken += 1
        self.epochs += 1
        self.seconds += clock() - start
        return losses

    @property
    def is_over(self) -> bool:
        """Whether all steps have been taken."""
        return self.taken >= self.steps

    def finish(self, set_of_epoch: Callable[[int], EpochSet] | None) -> Trained:
        """Take the steps that are left, epoch after epoch; evaluate."""
        while not self.is_over:
            assert set_of_epoch is not None  # None only where nothing is left to train on
            self.epoch(*set_of_epoch(self.epochs))
        accuracy, balanced = evaluate(self.model, self.problem)
        return Trained(self.model, self.seconds, self.taken, accuracy, balanced)


def evaluate(model: nn.Module, problem: Problem) -> tuple[float, float]:
    """Return accuracy and the mean of the classes' accuracies, in percent."""
    images, labels = problem.evaluation.tensors
    model.eval()
    with torch.no_grad():
        parts = images.split(_EVALUATED_AT_ONCE)
        predicted = torch.cat([model(part).argmax(1) for part in parts])
    right = (predicted == labels).double()
    each = torch.stack([right[labels == one].mean() for one in range(problem.classes)])
    return 100 * float(right.mean()), 100 * float(each.mean())


def _long_tail(pool: Indices, labels: NDArray[np.int64], classes: int, ratio: int) -> Indices:
    """Return a part of the pool in which class c has a share `ratio ** (-c / (C - 1))` of most."""
    members = [pool[labels[pool] == one] for one in range(classes)]
    most = min(len(one) for one in members)
    sizes = [round(most * ratio ** (-place / (classes - 1))) for place in range(classes)]
    kept = np.concatenate([one[:size] for one, size in zip(members, sizes, strict=True)])
    return np.sort(kept)


def _with_noise(
    true: NDArray[np.int64], classes: int, condition: Condition, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return labels (N,) as the learner sees them, and which of them are wrong.

    Raises:
        ValueError: The kind is unknown, or more are to be wrong than there are in half the classes.
    """
    if condition.noise_kind not in NOISE_KINDS:
        raise ValueError(f"expected noise of {NOISE_KINDS}, got {condition.noise_kind!r}")
    order = random.permutation(len(true))
    if condition.noise_kind == "some":
        order = order[true[order] < (classes + 1) // 2]
    count = round(condition.noise * len(true))
    if count > len(order):
        raise ValueError(
            f"expected at most the {len(order)} labels of the first half of the classes to be "
            f"wrong, got {count}; take a lower noise"
        )
    is_wrong = np.zeros(len(true), bool)
    is_wrong[order[:count]] = True
    offset = random.integers(1, classes, len(true)) if condition.noise_kind != "pair" else 1
    return np.where(is_wrong, (true + offset) % classes, true), is_wrong


def _laid_out(inputs: Tensor) -> Tensor:
    """Return images with their channels last, as convolutions like them; others as they are."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
