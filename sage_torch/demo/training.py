"""Training with the same network, steps and seeds on all data, a random and a SAGE subset."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from sage_torch.demo.data import DemoData
from sage_torch.options import Options
from sage_torch.sampler.sage_sampler import SageSampler
from sage_torch.select import select_subset
from sage_torch.selection.result import Selection

FULL, RANDOM, SAGE = METHODS = ("full data", "random subset", "SAGE subset")
_TEST_BATCH = 1_000


@dataclass(frozen=True)
class Plan:
    """The settings shared by all runs.

    Attributes:
        keep: Share of the training examples in a subset.
        steps: Optimizer steps per run.
        seeds: Each method runs once per seed, which fixes initialisation, order and subset.
        batch_size: Examples per step, at most the size of a subset.
        peak_rate: Highest learning rate of the one-cycle schedule.
    """

    keep: float
    steps: int
    seeds: tuple[int, ...]
    batch_size: int
    peak_rate: float = 0.01


@dataclass(frozen=True)
class Run:
    """One method with one seed, with accuracy in percent and times in seconds."""

    method: str
    seed: int
    examples: int
    steps: int
    accuracy: float
    warm_up_seconds: float
    selection_seconds: float
    training_seconds: float


@dataclass(frozen=True)
class Comparison:
    """All runs, and the SAGE selection of each seed."""

    plan: Plan
    runs: list[Run]
    selections: list[Selection]


def compare(data: DemoData, plan: Plan, *, progress: bool = True) -> Comparison:
    """Train on all data, on a random subset and on a SAGE subset, with equal steps and seeds.

    For each seed a model is warmed up for one epoch on all data, SAGE selects with it, and three
    fresh models with the same initialisation are trained. The random subset has as many examples of
    each class as the SAGE subset.

    Args:
        data: Training and test data.
        plan: Settings of the runs.
        progress: Whether to show a progress bar.

    Returns:
        Three runs per seed, in the order of `METHODS`, and the selections.

    Raises:
        ValueError: `keep` is out of range or rounds to no example, or there is no step or seed.

    Cost:
        One epoch, one selection and `3 * steps` steps per seed.
    """
    if plan.steps < 1 or not plan.seeds:
        raise ValueError(
            f"expected at least one step and one seed, got {plan.steps} and {len(plan.seeds)}"
        )
    total = len(data.train)
    # One size for all and no short last batch, so that all steps see the same number of examples.
    batch_size = min(plan.batch_size, Options(plan.keep).budget(total))
    epoch = total // batch_size
    runs: list[Run] = []
    selections: list[Selection] = []
    is_terminal = sys.stderr.isatty()
    with tqdm(
        total=len(plan.seeds) * (epoch + 3 * plan.steps),
        unit="step",
        disable=not progress,
        leave=False,
        mininterval=0.1 if is_terminal else 10,  # few lines in a log file
    ) as bar:
        for place, seed in enumerate(plan.seeds, 1):

            def announce(what: str, place: int = place) -> None:
                bar.set_description(f"seed {place} of {len(plan.seeds)}: {what}", is_terminal)

            announce("warm-up")
            all_data = _loader(data.train, batch_size, seed)
            warmed_up = fresh_model(data, seed)
            warm_up_seconds = _train(warmed_up, all_data, epoch, plan.peak_rate, bar)

            announce("selection")
            # The usual use, but select() is called to time the selection on its own. Without it,
            # the first epoch selects.
            sage = DataLoader(
                data.train,
                batch_size=batch_size,
                sampler=SageSampler(warmed_up, keep=plan.keep, seed=seed, progress=progress),
                drop_last=True,
            )
            assert isinstance(sage.sampler, SageSampler)
            chosen = sage.sampler.select()
            drawn = select_subset(
                warmed_up, data.train, plan.keep, rule="random", seed=seed, progress=False
            )
            selections.append(chosen)

            random_loader = _loader(Subset(data.train, drawn.indices.tolist()), batch_size, seed)
            for method, loader, examples, seconds in (
                (FULL, all_data, total, (0.0, 0.0)),
                (RANDOM, random_loader, len(drawn), (0.0, drawn.seconds["total"])),
                (SAGE, sage, len(chosen), (warm_up_seconds, chosen.seconds["total"])),
            ):
                announce(method)
                model = fresh_model(data, seed)
                training_seconds = _train(model, loader, plan.steps, plan.peak_rate, bar)
                accuracy = test_accuracy(model, data)
                runs.append(
                    Run(method, seed, examples, plan.steps, accuracy, *seconds, training_seconds)
                )
    return Comparison(plan, runs, selections)


def fresh_model(data: DemoData, seed: int) -> nn.Sequential:
    """Return a small convolutional network: 106,000 parameters for Fashion-MNIST.

    Args:
        data: Its image shape and number of classes size the network.
        seed: Seed of the initialisation; no global random number is drawn.
    """
    channels, height, width = data.image_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), 64),
            nn.ReLU(),
            nn.Linear(64, data.classes),
        )


def test_accuracy(model: nn.Module, data: DemoData) -> float:
    """Return the accuracy of a model on the test examples, in percent."""
    images, labels = data.test.tensors
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(part).argmax(1) == truth).sum())
            for part, truth in zip(
                images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True
            )
        )
    return 100 * right / len(labels)


def _train(
    model: nn.Module, loader: DataLoader[Any], steps: int, peak_rate: float, bar: tqdm[Any]
) -> float:
    """Take `steps` optimizer steps, over as many epochs as needed; return the seconds."""
    start = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps)
    loss_of = nn.CrossEntropyLoss()
    model.train()
    for images, labels in islice(_endless(loader), steps):
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
        schedule.step()
        bar.update()
    return time.perf_counter() - start


def _endless(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def _loader(dataset: Any, batch_size: int, seed: int) -> DataLoader[Any]:
    order = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, generator=order)
