"""Gradients as a training step computes them, one example at a time, and small models to try."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Loss = Callable[[nn.Module, Any], Tensor]


N, CLASSES = 7, 3


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def by_microbatches(
    model: nn.Module, loss: Loss, batch: Any, names: list[str] | None = None
) -> Tensor:
    """Return the rows (n, D) from a training step's own way: zero_grad, backward, read .grad."""
    model = copy.deepcopy(model)
    if names is None:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = dict(model.named_parameters())
    n = len(next(iter(batch.values())) if isinstance(batch, dict) else batch[-1])
    rows = []
    for i in range(n):
        one = slice(i, i + 1)
        if isinstance(batch, dict):
            example: Any = {key: value[one] for key, value in batch.items()}
        else:
            example = tuple(value[one] for value in batch)
        model.zero_grad()
        torch.autograd.backward(loss(model, example).sum())
        chosen = [parameters[name] for name in names]
        flat = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in chosen]
        rows.append(torch.cat(flat))
    return torch.stack(rows)


def assert_rows(rows: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert rows.dtype == torch.float32
    assert rows.shape == expected.shape
    assert not rows.requires_grad
    assert expected.norm() > 0
    error = (rows.double() - expected.double()).norm(dim=1)
    assert bool((error <= tolerance * expected.double().norm(dim=1)).all()), error


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Any:
        return self.decoder(torch.tanh(self.encoder(x)))


class HeadFirst(nn.Module):
    """The classifier is registered before the trunk; one parameter is never used."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(8, CLASSES, bias=bias)
        self.unused = nn.Linear(2, 2)
        self.trunk = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.trunk(x)))


class Text(nn.Module):
    """A dict batch in, an object with `.logits` out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.classifier = nn.Linear(5, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        mask = attention_mask[..., None]
        pooled = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.classifier(pooled))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Any:
        return self.last(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES))


def cnn(norm: Callable[[], nn.Module]) -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(), nn.ReLU(), nn.Conv2d(4, 4, 3), *head)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(30, CLASSES))


VECTORS, IMAGES, SERIES = (6,), (3, 8, 8), (5, 6)


MODELS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("mlp", mlp, VECTORS),
    ("batch norm", lambda: cnn(lambda: nn.BatchNorm2d(4)), IMAGES),
    ("group norm", lambda: cnn(lambda: nn.GroupNorm(2, 4)), IMAGES),
    ("tied", lambda: nn.Sequential(Tied(), nn.Linear(6, CLASSES)), VECTORS),
    ("unused parameter", HeadFirst, VECTORS),
    ("attention", transformer, SERIES),
    ("one layer", lambda: nn.Linear(6, CLASSES), VECTORS),
]


models = pytest.mark.parametrize(
    ("build", "shape"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS]
)


def make(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales that matter
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return model.eval(), (torch.randn(N, *shape), torch.randint(CLASSES, (N,)))
