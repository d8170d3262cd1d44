"""What one entry of the zoo is: a model, a batch and a loss, and how its gradients are found."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from microbatches import CLASSES, Loss, N, by_microbatches, cross_entropy
from torch import Tensor, nn

__all__ = [
    "CLASSES",
    "Case",
    "N",
    "Seen",
    "classifier",
    "images",
    "sequences",
    "signals",
    "tokens",
    "vectors",
]


@dataclass(frozen=True)
class Case:
    """A model with a batch of its own.

    `functional` are patterns of the parameters that no layer rule covers: exactly those are
    expected to go to the functional computer. None leaves it open.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Loss = cross_entropy
    functional: tuple[str, ...] | None = ()

    def make(self) -> tuple[nn.Module, Any]:
        """Return the model in eval mode and its batch, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, about nested tensors
                model = self.build()
            _shake(model)
            return model.eval(), self.batch()

    def expected(self, names: list[str] | None = None) -> Tensor:
        """Return the rows of microbatches."""
        model, batch = self.make()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = False
        # It is a fresh model; and a copy of a traced one would not train.
        model.__deepcopy__ = lambda memo: model  # type: ignore[assignment]
        return by_microbatches(model, self.loss, batch, names)


def _shake(model: nn.Module) -> None:
    """Move constant parameters and statistics away from their first values, which hide errors."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)


def _inputs(*shape: int) -> Callable[[], Any]:
    return lambda: (torch.randn(N, *shape), torch.randint(CLASSES, (N,)))


def vectors(features: int = 6) -> Callable[[], Any]:
    """Return a maker of vectors (N, features) with class targets."""
    return _inputs(features)


def signals(channels: int = 4, length: int = 9) -> Callable[[], Any]:
    """Return a maker of signals (N, channels, length) with class targets."""
    return _inputs(channels, length)


def images(channels: int = 3, side: int = 8, n: int = N) -> Callable[[], Any]:
    """Return a maker of images (n, channels, side, side) with class targets."""
    return lambda: (torch.randn(n, channels, side, side), torch.randint(CLASSES, (n,)))


def sequences(features: int = 6, length: int = N) -> Callable[[], Any]:
    """Return a maker of sequences (N, length, features): as long as the batch, to be mistaken."""
    return _inputs(length, features)


def tokens(vocabulary: int = 11, length: int = N) -> Callable[[], Any]:
    """Return a maker of token sequences (N, length) with class targets."""
    return lambda: (torch.randint(vocabulary, (N, length)), torch.randint(CLASSES, (N,)))


class Seen(nn.Module):
    """Layers, and a linear classifier of all that they return."""

    def __init__(self, *layers: nn.Module, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.layers(x)).flatten(1))


def classifier(*layers: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Return a classifier of what layers make of inputs (n, *shape)."""
    with torch.no_grad():
        flat = nn.Sequential(*layers).eval()(torch.zeros(2, *shape)).flatten(1)
    return Seen(*layers, features=flat.shape[1])
