"""A warm-up of several epochs: a sample of the labels is read after the first one, too."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sage_torch import SageError, SageSampler, Selection, select_subset
from sage_torch.passes.calibration import NOT_CALIBRATED, FirstReading

CLASSES, FEATURES = 4, 8


def data(count: int, flipped: float, seed: int = 0) -> TensorDataset:
    """Classes far apart, some labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = 6 * F.one_hot(torch.arange(CLASSES), FEATURES).float()
    inputs = centres[labels] + torch.randn(count, FEATURES, generator=generator)
    is_wrong = torch.rand(count, generator=generator) < flipped
    offset = torch.randint(1, CLASSES, (count,), generator=generator)
    return TensorDataset(inputs, torch.where(is_wrong, (labels + offset) % CLASSES, labels))


class Counted(Dataset[Any]):
    """Counts what is read, and may spoil one example."""

    def __init__(self, inner: TensorDataset, spoilt: int = -1) -> None:
        self.inner, self.spoilt, self.read = inner, spoilt, 0

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        inputs, label = self.inner[index]
        return inputs * (math.nan if index == self.spoilt else 1.0), label


@pytest.fixture
def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    train(made, data(400, 0.0, seed=5), 25)
    return made


def train(model: nn.Module, examples: TensorDataset, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    inputs, labels = examples.tensors
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def sampler_of(model: nn.Module, examples: Dataset[Any] | None, **options: Any) -> SageSampler:
    given: dict[str, Any] = {"draw": "rotate", "warmup_epochs": 3, "progress": False}
    return SageSampler(model, examples, keep=0.3, **given | options)


def rho_of(model: nn.Module, examples: Dataset[Any]) -> float:
    found = select_subset(model, examples, 0.3, draw="rotate", progress=False)
    return float(found.settings["rho"])


@pytest.mark.parametrize("draw", ["rotate", "fixed"])
def test_both_shares_count(draw: str, model: nn.Module) -> None:
    examples = data(400, 0.25)
    sampler = sampler_of(model, examples, draw=draw)
    list(sampler)
    first = rho_of(model, examples)
    list(sampler)
    assert sampler.selection is None
    train(model, examples, 100)  # learns some of the wrong labels by heart
    list(sampler)
    later = rho_of(model, examples)
    list(sampler)
    assert sampler.selection is not None
    assert later < first
    assert sampler.selection.settings["rho"] == pytest.approx(math.sqrt(first * later), rel=1e-6)


def test_the_lesser_skill_and_trust_count() -> None:
    first, now = FirstReading(0.2, 0.1, 0.3), replace(NOT_CALIBRATED, rho=0.05, skill=0.6)
    found = now.after(first)
    assert (found.rho, found.skill, found.trust) == (pytest.approx(0.1), 0.1, 0.3)
    weaker = replace(now, skill=0.05, trust=0.2).after(first)
    assert (weaker.skill, weaker.trust) == (0.05, 0.2)
    assert now.after(None) is now


def test_labels_that_look_wrong_are_drawn_less_often(model: nn.Module) -> None:
    examples = data(400, 0.25)

    def wrong(is_read: bool) -> float:
        sampler = sampler_of(model, examples)
        if is_read:
            list(sampler), list(sampler)
        train(model, examples, 100)
        sampler.set_epoch(3)
        list(sampler)
        assert isinstance(sampler.selection, Selection)
        assert sampler.selection.is_wrong is not None
        return float(sampler.selection.is_wrong.mean())

    begun = {name: value.clone() for name, value in model.state_dict().items()}
    with_first = wrong(is_read=True)
    model.load_state_dict(begun)
    assert with_first > wrong(is_read=False)


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_it_survives_a_restart(stopped: int, model: nn.Module) -> None:
    examples = data(300, 0.25)
    begun = {name: value.clone() for name, value in model.state_dict().items()}

    def through(sampler: SageSampler, epochs: range) -> list[list[int]]:
        found = []
        for _ in epochs:
            found.append(list(sampler))
            train(model, examples, 20)
        return found

    expected = through(sampler_of(model, examples), range(5))
    model.load_state_dict(begun)
    sampler = sampler_of(model, examples)
    assert through(sampler, range(stopped)) == expected[:stopped]
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    again = sampler_of(model, examples)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert through(again, range(stopped, 5)) == expected[stopped:]


@pytest.mark.parametrize(
    "first_reading", [0.5, [0.5, 0.5], [0.5, 2.0, 0.5], [0.5, 0.5, "much"], [math.nan] * 3]
)
def test_a_damaged_reading_is_refused(first_reading: Any, model: nn.Module) -> None:
    sampler = sampler_of(model, data(40, 0.0))
    state = sampler.state_dict() | {"first_reading": first_reading}
    with pytest.raises(ValueError, match="first_reading to be 3 shares"):
        sampler.load_state_dict(state)


def test_a_sample_is_enough(model: nn.Module) -> None:
    examples = Counted(data(9_000, 0.2))
    sampler = sampler_of(model, examples)
    next(iter(sampler))
    assert examples.read == 0
    sampler.set_epoch(1)
    next(iter(sampler))
    assert 8_192 <= examples.read < 8_292  # and some that show what examples are like
    read = examples.read
    next(iter(sampler))
    assert examples.read == read  # once is enough


def test_labels_may_be_given_apart(model: nn.Module) -> None:
    examples = data(9_000, 0.2)
    inputs, labels = examples.tensors
    bare, given = TensorDataset(inputs), sampler_of(model, examples)

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return -torch.logsumexp(model(batch[0]), 1)

    apart = sampler_of(model, bare, labels=labels.numpy(), loss=loss)
    for sampler in (given, apart):
        sampler.set_epoch(1)
        next(iter(sampler))
    readings = [sampler.state_dict()["first_reading"] for sampler in (given, apart)]
    assert readings[0] == readings[1]
    assert readings[0][0] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_epochs": 1},
        {"trim": None},
        {"trim": "negative"},
        {"rule": "agreement", "draw": "fixed"},
        {"rule": "random"},
        {"gradients": lambda batch: batch[0]},
        {"labels": None},
    ],
    ids=lambda options: " ".join(options),
)
def test_nothing_is_read_where_nobody_asks(options: dict[str, Any], model: nn.Module) -> None:
    examples = Counted(data(3_000, 0.2))
    sampler = sampler_of(model, examples, **options)
    for epoch in range(sampler.warmup_epochs):
        sampler.set_epoch(epoch)
        next(iter(sampler))
    assert examples.read < 100
    assert sampler.state_dict()["first_reading"] is None


def test_the_selection_says_which_example_fails(model: nn.Module) -> None:
    spoilt = 123
    sampler = sampler_of(model, Counted(data(400, 0.0), spoilt))
    for _ in range(3):
        list(sampler)
    assert sampler.state_dict()["first_reading"] is None
    with pytest.raises(SageError) as caught:
        list(sampler)
    assert caught.value.index == spoilt


def test_labels_of_other_examples_are_refused(model: nn.Module) -> None:
    examples = data(400, 0.0)
    sampler = SageSampler(model, keep=0.3, warmup_epochs=3, labels=[0, 1] * 100, progress=False)
    loader = DataLoader(examples, sampler=sampler, batch_size=100)
    with pytest.raises(ValueError, match="labels of all 400 examples, got 200"):
        list(loader)  # before the first epoch


def test_a_view_of_other_examples_is_refused(model: nn.Module) -> None:
    sampler = sampler_of(model, None, score_dataset=data(500, 0.0))
    loader = DataLoader(data(400, 0.0), sampler=sampler, batch_size=100)
    list(loader)
    with pytest.raises(ValueError, match="score_dataset to hold the same 400 examples"):
        list(loader)


def test_what_the_reading_cannot_do_is_left_to_the_selection(model: nn.Module) -> None:
    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])  # no loss per example

    sampler = sampler_of(model, data(400, 0.0), loss=loss)
    for _ in range(3):
        list(sampler)
    with pytest.raises(ValueError, match="loss"):
        list(sampler)


def test_model_and_random_state_stay(model: nn.Module) -> None:
    examples = data(400, 0.2)
    model.train()
    sampler = sampler_of(model, examples, num_workers=0)
    list(sampler)
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    objects, random = list(map(id, model.parameters())), torch.get_rng_state()
    list(sampler)
    assert sampler.state_dict()["first_reading"] is not None
    assert model.training
    assert list(map(id, model.parameters())) == objects
    assert all(torch.equal(bits[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(("flipped", "is_even"), [(0.0, False), (0.3, True)])
def test_what_is_hard_comes_more_often_only_where_few_are_wrong(
    flipped: float, is_even: bool, model: nn.Module
) -> None:
    with torch.no_grad():
        model[-1].weight *= 0.3  # type: ignore[index]  # less sure than its features allow
    found = select_subset(model, data(400, flipped), 0.3, draw="rotate", progress=False)
    assert found.draws is not None
    assert (found.settings["rho"] >= 0.1) == is_even
    assert (found.draws.exponent == 0) == is_even
