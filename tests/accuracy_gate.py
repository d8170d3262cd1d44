"""What the accuracy gate trains, and on what: small enough to repeat with dozens of seeds.

The gate is `quality/test_accuracy.py`; `benchmarks/quality/gate_power.py` measures with other seeds
what it expects (`Cell.gain`) and what it notices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sage_torch.option_types import SelectionOptions

TRAIN_EXAMPLES = 1_000  # of 1,797; a large test set keeps the accuracies' noise low
STEPS, BATCH, PEAK_RATE = 200, 32, 0.2
WARM_UP_STEPS = 3 * (TRAIN_EXAMPLES // BATCH)
TRAINING = {
    "examples": TRAIN_EXAMPLES,
    "steps": STEPS,
    "batch": BATCH,
    "peak_rate": PEAK_RATE,
    "warm_up_steps": WARM_UP_STEPS,
}
CONFIDENCE = 0.99  # of each cell: that rarely a change that changes nothing is taken for a loss


@dataclass(frozen=True)
class Cell:
    """One question of the gate.

    `gain`: the mean points over class-balanced random that the selection had with the seeds of
    benchmarks/quality/gate_power.py, less a tenth, rounded down. `seeds`: others than those.
    `options` of `select_subset`.
    """

    keep: float
    seeds: range
    gain: float
    flipped: float = 0.0
    options: SelectionOptions = field(default_factory=SelectionOptions)

    @property
    def name(self) -> str:
        return f"keep {self.keep:g}" + (f", {self.flipped:.0%} flipped" if self.flipped else "")


# All defaults. Of 1,000 examples the trim drops about 10 where all labels are right, and 204 of the
# other cell, which has 200 wrong ones.
CELLS = (
    Cell(keep=0.25, seeds=range(1_000, 1_032), gain=2.7),
    Cell(keep=0.5, seeds=range(1_000, 1_044), gain=3.8, flipped=0.2),
)


class Digits:
    """Scikit-learn's handwritten digits, some labels of the training part flipped."""

    def __init__(self, flipped: float) -> None:
        pixels, digits = load_digits(return_X_y=True)
        random = np.random.default_rng(0)
        order = random.permutation(len(digits))
        inputs = torch.from_numpy((pixels[order] / 16).astype(np.float32))
        labels = torch.from_numpy(digits[order].astype(np.int64))
        self._test = inputs[TRAIN_EXAMPLES:], labels[TRAIN_EXAMPLES:]
        learnt = labels[:TRAIN_EXAMPLES].clone()
        wrong = random.permutation(TRAIN_EXAMPLES)[: round(flipped * TRAIN_EXAMPLES)]
        learnt[wrong] = (learnt[wrong] + torch.from_numpy(random.integers(1, 10, len(wrong)))) % 10
        self.train = TensorDataset(inputs[:TRAIN_EXAMPLES], learnt)

    def evaluate(self, model: nn.Module) -> float:
        """Return the accuracy on the 797 test examples, in percent."""
        inputs, labels = self._test
        with torch.no_grad():
            return 100 * float((model(inputs).argmax(1) == labels).float().mean())


def train(dataset: Dataset[Any], seed: int, steps: int = STEPS) -> nn.Module:
    """Return a network of 9,610 parameters (so gradients are projected) after equal steps.

    By cross-entropy, SGD with momentum and OneCycleLR; backward passes and steps are written out,
    since for matrices this small autograd and an optimizer take twice as long as all arithmetic.
    """
    inputs, labels = next(iter(DataLoader(dataset, len(dataset))))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    targets = F.one_hot(labels, 10).float()
    first, first_bias, last, last_bias = parameters = list(model.parameters())
    with torch.no_grad():
        moving = [torch.zeros_like(parameter) for parameter in parameters]
        for batch, (rate, momentum) in zip(
            batches(len(labels), steps, seed), _schedule(steps), strict=True
        ):
            given = inputs[batch]
            hidden = torch.addmm(first_bias, given, first.T).relu_()
            chances = torch.addmm(last_bias, hidden, last.T).softmax(1)
            error = (chances - targets[batch]) / len(batch)  # by the logits; next by `hidden`
            inner = (error @ last).mul_(hidden > 0)
            gradients = inner.T @ given, inner.sum(0), error.T @ hidden, error.sum(0)
            for parameter, mean, gradient in zip(parameters, moving, gradients, strict=True):
                parameter.sub_(mean.mul_(momentum).add_(gradient), alpha=rate)
    return model


@cache
def _schedule(steps: int) -> list[tuple[float, float]]:
    """Return the learning rate and the momentum of each step, as OneCycleLR sets them."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    found = []
    for _ in range(steps):
        (group,) = optimizer.param_groups
        found.append((group["lr"], group["momentum"]))
        optimizer.step()
        schedule.step()
    return found


def warm_up(dataset: Dataset[Any], seed: int) -> nn.Module:
    """Return the network after three short epochs."""
    return train(dataset, seed, WARM_UP_STEPS)


def batches(total: int, steps: int, seed: int) -> list[Tensor]:
    """Return the indices of each step: shuffled epochs, the short last batch of each dropped."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    while len(drawn) < steps:
        order = torch.randperm(total, generator=generator)
        drawn += order[: total // BATCH * BATCH].split(BATCH)
    return drawn[:steps]
