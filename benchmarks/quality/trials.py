"""One trial of `quality.py`: a pool of examples, a small network, a number of steps.

Everything is a function of the seed: pool, wrong labels, warm-up, initialisation, order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.quality.cifar10 import load_cifar10
from benchmarks.quality.models import resnet18
from sage_torch.demo.data import DemoData, load

Indices = NDArray[np.int64]
# Weights (k,) have mean 1, so that the learning rate means the same with and without.
EpochSet = tuple[Indices, NDArray[np.float32] | None]
Split = Literal["validation", "test"]

BATCH = 64
MIRRORED = ("cifar-10",)  # at random while training; not clothes and digits
PEAK_RATE, WEIGHT_DECAY = 0.05, 5e-4
MOMENTUM = (0.85, 0.95)  # against the learning rate: lowest where that is highest
HELD_OUT = 10_000  # last examples of a seeded order of the training set: the validation split
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_EVALUATED_AT_ONCE = 1_000
_SPLIT_SEED = 2025


@dataclass(frozen=True)
class Condition:
    """What the learner is given.

    Attributes:
        data: `fashion-mnist`, `cifar-10` or `digits`.
        noise: Share of labels that are wrong.
        noise_kind: `symmetric`: any other class; `pair`: the next class.
        imbalance: Size of the largest class over the smallest (1: as in the pool).
        split: What accuracy is measured on.
        pool: Training examples at most.
        network: `small`, or `resnet-18` (three channels; for a GPU).
    """

    data: str
    noise: float = 0.0
    noise_kind: str = "symmetric"
    imbalance: int = 1
    split: Split = "test"
    pool: int = 20_000
    network: str = "small"


@dataclass(frozen=True)
class Problem:
    """A pool with labels as the learner sees them, and images to evaluate on."""

    images: Tensor
    labels: Tensor
    is_wrong: NDArray[np.bool_]
    evaluation: TensorDataset
    classes: int
    is_mirrored: bool

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
    data = _loaded(condition.data, data_root)
    images, labels = data.train.tensors
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    held_out = min(HELD_OUT, len(labels) // 5)
    source, validation = order[:-held_out], order[-held_out:]
    random = np.random.default_rng((seed, 1))
    pool = random.permutation(source)[: condition.pool]
    if condition.imbalance > 1:
        pool = _long_tail(pool, labels.numpy(), data.classes, condition.imbalance)
    true = labels[pool].numpy()
    seen = true.copy()
    is_wrong = np.zeros(len(pool), bool)
    is_wrong[random.permutation(len(pool))[: round(condition.noise * len(pool))]] = True
    offset = random.integers(1, data.classes, len(pool)) if condition.noise_kind != "pair" else 1
    seen[is_wrong] = ((true + offset) % data.classes)[is_wrong]
    if condition.split == "test":
        evaluation = data.test
    else:
        evaluation = TensorDataset(images[validation], labels[validation])
    return Problem(
        images=images[pool].contiguous(memory_format=torch.channels_last).to(DEVICE),
        labels=torch.from_numpy(seen).to(DEVICE),
        is_wrong=is_wrong,
        evaluation=TensorDataset(*(part.to(DEVICE) for part in evaluation.tensors)),
        classes=data.classes,
        is_mirrored=condition.data in MIRRORED,
    )


def clock() -> float:
    """Seconds of this process on the CPU, whatever else runs there; with a GPU, of the wall."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def network(condition: Condition, problem: Problem, seed: int) -> nn.Module:
    """Return a fresh network for a pool, on the device; its initialisation is named by the seed.

    `small` has 106,000 parameters on Fashion-MNIST and no pooling but strides (Springenberg et al.
    2015): four times as fast on a CPU.
    """
    channels, height, width = problem.images.shape[1:]
    area = -(-height // 4) * -(-width // 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module
        if condition.network == "resnet-18":
            model = resnet18()
        else:
            model = nn.Sequential(
                nn.Conv2d(channels, 16, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * area, 64),
                nn.ReLU(),
                nn.Linear(64, problem.classes),
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
        self.was_right = np.zeros(len(problem), bool)  # when last trained on
        self._seed = seed
        self._optimizer = torch.optim.SGD(
            model.parameters(), PEAK_RATE, MOMENTUM[1], weight_decay=WEIGHT_DECAY, nesterov=True
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            PEAK_RATE,
            total_steps=steps,
            base_momentum=MOMENTUM[0],
            max_momentum=MOMENTUM[1],
        )

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
            if self.problem.is_mirrored:
                is_turned = torch.from_numpy(random.random(batch) < 0.5)
                images[is_turned] = images[is_turned].flip(-1)
            labels = self.problem.labels[chosen]
            outputs = self.model(images)
            loss = cross_entropy(outputs, labels, reduction="none")
            losses[chosen] = loss.detach().cpu()
            self.was_right[indices[part]] = (outputs.argmax(1) == labels).cpu().numpy()
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


@lru_cache(maxsize=2)
def _loaded(name: str, data_root: Path | None) -> DemoData:
    """Load once a process; a later call without a root finds what the first one read."""
    if name in _FOUND:
        return _FOUND[name]
    data = load_cifar10(data_root) if name == "cifar-10" else load(name, data_root)
    images = data.train.tensors[0]
    mean = images.mean((0, 2, 3), keepdim=True)
    deviation = images.std((0, 2, 3), keepdim=True)

    def standardised(part: TensorDataset) -> TensorDataset:
        images, labels = part.tensors
        return TensorDataset((images - mean) / deviation, labels)

    _FOUND[name] = DemoData(
        name=data.name,
        train=standardised(data.train),
        test=standardised(data.test),
        classes=data.classes,
        image_shape=data.image_shape,
        class_names=data.class_names,
    )
    return _FOUND[name]


_FOUND: dict[str, DemoData] = {}


def _long_tail(pool: Indices, labels: NDArray[np.int64], classes: int, ratio: int) -> Indices:
    """Return a part of the pool in which class c has a share `ratio ** (-c / (C - 1))` of most."""
    members = [pool[labels[pool] == one] for one in range(classes)]
    most = min(len(one) for one in members)
    sizes = [round(most * ratio ** (-place / (classes - 1))) for place in range(classes)]
    kept = np.concatenate([one[:size] for one, size in zip(members, sizes, strict=True)])
    return np.sort(kept)
