"""Later batches may differ from the first one: in length, in number, in what they use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import assert_rows, by_microbatches, cross_entropy
from torch import Tensor, nn
from zoo import case
from zoo.case import CLASSES
from zoo.inputs import Shaped
from zoo.sequences import GPT, Attends, EncoderDecoder, next_token, next_token_flat

from sage_torch.gradients import ProjectedGradients

EXACT = 10**6


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="vmap cannot differentiate")
        torch.manual_seed(0)
        yield


def compare(model: nn.Module, loss: Any, batches: list[Any]) -> ProjectedGradients:
    """Give batches one after another to one computer."""
    gradients = ProjectedGradients(model.eval(), EXACT, loss)
    for batch in batches:
        assert_rows(gradients(batch), by_microbatches(model, loss, batch))
    return gradients


def sequences(n: int, length: int) -> Any:
    return torch.randn(n, length, 6), torch.randint(CLASSES, (n,))


SIZES = [(1, 1), (5, 4), (4, 4), (3, 7), (7, 3), (1, 6), (6, 1), (2, 2)]


@pytest.mark.parametrize("first", range(len(SIZES)), ids=lambda i: "{} x {}".format(*SIZES[i]))
@pytest.mark.parametrize("loss", [next_token, next_token_flat])
def test_sequences_of_any_length_and_number(first: int, loss: Any) -> None:
    model = GPT("sliced")
    sizes = [(n, length + 1) for n, length in SIZES[first:] + SIZES[:first]]
    tokens = [(torch.randint(11, size),) for size in sizes if size[1] <= 9]
    assert "functional" not in str(compare(model, loss, tokens).handling)


APPLIED = {
    "flattened": lambda m, x: m(x.reshape(-1, 6)).view(x.shape),
    "time first": lambda m, x: m(x.transpose(0, 1)).transpose(0, 1),
    "time first, flattened": lambda m, x: (
        m(x.transpose(0, 1).reshape(-1, 6)).view(x.shape[1], len(x), 6).transpose(0, 1)
    ),
    "squeezed": lambda m, x: m(x.squeeze()).view(x.shape),
}


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("first", [0, 1, 2, 5, 6])
def test_layouts_of_any_length_and_number(name: str, first: int) -> None:
    batches = [sequences(*size) for size in SIZES[first:] + SIZES[:first]]
    compare(Shaped(APPLIED[name]), cross_entropy, batches)


@pytest.mark.parametrize("first", [0, 1, 3, 6])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_any_length_and_number(batch_first: bool, first: int) -> None:
    sizes = SIZES[first:] + SIZES[:first]
    attends = Attends(batch_first, need_weights=False)
    compare(attends, cross_entropy, [sequences(*size) for size in sizes])
    tokens = [(torch.randint(11, (n, length + 1)),) for n, length in sizes]
    compare(EncoderDecoder(batch_first), next_token, tokens)


def test_images_of_any_size() -> None:
    layers = [
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.GroupNorm(2, 4),
    ]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    sizes = [(1, 3, 5, 5), (4, 3, 9, 6), (3, 3, 3, 3), (6, 3, 6, 12)]
    batches = [(torch.randn(s), torch.randint(CLASSES, s[:1])) for s in sizes]
    gradients = compare(model, cross_entropy, batches)
    assert "functional" not in str(gradients.handling)


class Switch(nn.Module):
    """What is used can be changed between calls, as when a schedule brings in a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.extra = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head, self.uses_extra, self.scale = nn.Linear(6, CLASSES), False, 1.0

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.first(x))
        if self.uses_extra:
            x = torch.tanh(self.extra(x) @ self.first.weight)
        return self.head(x) * self.scale


def test_what_the_first_batch_did_not_use() -> None:
    model = Switch().eval()
    batch = (torch.randn(5, 6), torch.randint(CLASSES, (5,)))
    gradients = ProjectedGradients(model, EXACT)
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))
    assert "unused" in gradients.handling["extra.weight"]
    model.uses_extra = True
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))
    assert "unused" not in gradients.handling["extra.weight"]
    model.uses_extra = False
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))


@pytest.mark.parametrize("late", [0, 1, 2, 5, 7, 11, 15])
def test_an_expert_for_one_example_alone(late: int) -> None:
    model, _ = case("experts").make()
    inputs, targets = torch.randn(64, 6), torch.randint(CLASSES, (64,))
    choice = model.get_submodule("router")(inputs).argmax(1)
    usual, rare = inputs[choice == 0][:16], inputs[choice == 1][:1]
    inputs = torch.cat([usual[:late], rare, usual[late:]])
    batch = (inputs, targets[: len(inputs)])
    compare(model, cross_entropy, [batch, (usual, targets[: len(usual)]), batch])


def test_confident_predictions_are_no_disagreement() -> None:
    # Gradients of 1e-7 have few digits, and other ones for other batch sizes.
    model = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)).eval()
    inputs = torch.randn(24, 512)
    with torch.no_grad():
        logits = model(inputs)
        targets = logits.argmax(1)
        best = logits.topk(2).values
        model[2].weight.mul_(15 / (best[:, 0] - best[:, 1]).median())
    gradients = ProjectedGradients(model, 16)
    rows = gradients((inputs, targets))
    assert "functional" not in str(gradients.handling)
    expected = ProjectedGradients(model, 16, self_check=False)((inputs, targets))
    assert torch.equal(rows, expected)


def test_examples_without_a_gradient() -> None:
    def hinge(model: nn.Module, batch: Any) -> Tensor:
        return F.multi_margin_loss(model(batch[0]), batch[1], margin=0.02, reduction="none")

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()
    inputs = torch.randn(12, 6)
    targets = model(inputs).argmax(1)
    targets[3] = (targets[3] + 1) % CLASSES
    rows = ProjectedGradients(model, 4, hinge)((inputs, targets))
    assert bool(rows[3].any())
    assert int(rows.any(1).sum()) < 12


def test_rows_are_float32_whatever_the_default() -> None:
    model, batch = case("lenet").make()
    expected = ProjectedGradients(model, 4)(batch)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        rows = ProjectedGradients(model, 4, fallback=False)(batch)
    finally:
        torch.set_default_dtype(before)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, expected)


def test_anomaly_mode() -> None:
    model, batch = case("timm vit").make()
    expected = ProjectedGradients(model, 4)(batch)
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("ignore")
        assert_rows(ProjectedGradients(model, 4, fallback=False)(batch), expected)


class Kinked(nn.Module):
    """Examples of zeros lie at the kinks of a ReLU, where more examples fall on another side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        rounding = 1e-30 if len(x) > 1 else 0.0
        result: Tensor = self.last((self.first(x) + rounding).relu())
        return result


@pytest.mark.parametrize(("zeros", "is_right"), [([0], True), ([4], True), ([0, 4], False)])
def test_one_example_at_a_kink_is_no_fault(zeros: list[int], is_right: bool) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(12, 4)
    inputs[zeros] = 0.0
    gradients = ProjectedGradients(Kinked(), 10**6)
    gradients((inputs, torch.arange(12) % 3))
    are_left = any("fallback" in how for how in gradients.handling.values())
    assert are_left != is_right
