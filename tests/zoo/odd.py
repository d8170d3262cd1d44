"""Models and losses that are easily mistaken; how they are handled is left open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from microbatches import Loss, cross_entropy
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune

from zoo.case import CLASSES, Case, N, classifier, images, sequences, tokens, vectors
from zoo.inputs import Shaped


def odd(
    name: str, build: Callable[[], nn.Module], batch: Any = None, loss: Loss = cross_entropy
) -> Case:
    return Case(name, build, batch or vectors(), loss, functional=None)


class Frames(nn.Module):
    """Images of a sequence side by side in the first dimension, examples or places first."""

    def __init__(self, places_first: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 2, groups=2),
            nn.GroupNorm(2, 4), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2),
            nn.InstanceNorm2d(2, affine=True), nn.PReLU(2),
        )  # fmt: skip
        self.head, self.places_first = nn.Linear(2, CLASSES), places_first

    def forward(self, x: Tensor) -> Any:
        x = x.transpose(0, 1) if self.places_first else x
        features = self.convs(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        weights = torch.arange(features.shape[4]).float().sin()
        pooled = (features * weights).mean((3, 4))
        return self.head(pooled.mean(0 if self.places_first else 1))


def videos() -> Any:
    return torch.randn(N, N, 2, 5, 5), torch.randint(CLASSES, (N,))


class Conditional(nn.Module):
    """A class embedding that scales and shifts features (FiLM), and one of its own for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.film, self.first = nn.Embedding(4, 12), nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        scale, shift = self.film((x.sum(1).abs() * 2).long() % 4).chunk(2, dim=1)
        return self.head(torch.tanh(self.first(x) * (1 + scale) + shift))


class Queries(nn.Module):
    """Learned queries attend to the input (DETR), first to themselves."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(6, 2, 10)
        self.query = nn.Embedding(N, 6)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        queries = self.query.weight.unsqueeze(1).repeat(1, len(x), 1)
        return self.head(self.decoder(queries, x.transpose(0, 1)).mean(0))


class FirstState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state, self.gru = nn.Parameter(torch.randn(1, 1, 5)), nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.gru(x, self.state.expand(-1, len(x), -1).contiguous())[0][:, -1])


class Ensemble(nn.Module):
    """Three networks at once, by vmap over their stacked parameters."""

    def __init__(self) -> None:
        super().__init__()
        networks = [nn.Linear(6, CLASSES) for _ in range(3)]
        stacked, _ = stack_module_state(networks)  # type: ignore[arg-type]
        self.stacked = nn.ParameterDict({k: nn.Parameter(v.detach()) for k, v in stacked.items()})
        self.base = [nn.Linear(6, CLASSES).to("meta")]  # in a list: not a module of this one

    def forward(self, x: Tensor) -> Any:
        def one(parameters: Any) -> Any:
            return functional_call(self.base[0], parameters, (x,))

        return vmap(one)(dict(self.stacked)).tanh().mean(0)


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Any:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-3)
        return self._conv_forward(x, weight, self.bias)


class Hyper(nn.Module):
    """One network's output is another one's weight, for every example anew, and for all alike."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.shared = nn.Linear(6, 12), nn.Linear(3, 36)
        self.code, self.head = nn.Parameter(torch.randn(3)), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(F.linear(x, self.shared(torch.tanh(self.code)).view(6, 6)))
        own = self.own(x).view(-1, 2, 6)
        return self.head(torch.tanh(torch.bmm(own, x[:, :, None])[..., 0]))


def standardised() -> nn.Module:
    return classifier(StandardisedConv(3, 4, 3), shape=(3, 8, 8))


def pruned() -> nn.Module:
    first = nn.Linear(6, 8)
    with torch.no_grad():
        prune.random_unstructured(first, "weight", 0.3)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, CLASSES))


def orthogonal() -> nn.Module:
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Linear(6, CLASSES))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    model[0].register_forward_pre_hook(_halve)
    model[0].register_forward_hook(_double)
    model[2].register_full_backward_hook(_look)
    return model


def _halve(module: nn.Module, args: Any) -> Any:
    return (0.5 * args[0],)


def _double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * output


def _look(module: nn.Module, input_gradients: Any, output_gradients: Any) -> None:
    assert output_gradients[0] is not None


def with_penalty(model: nn.Module, batch: Any) -> Tensor:
    penalty = sum(parameter.square().sum() for parameter in model.parameters())
    return cross_entropy(model, batch) + 0.01 * penalty


def batch_dependent_weights(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) * batch[1].add(1).double()


def gradient_penalty(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch[0].detach().requires_grad_()
    logits = model(inputs)
    (slope,) = torch.autograd.grad(logits.square().sum(), inputs, create_graph=True)
    return F.cross_entropy(logits, batch[1], reduction="none") + slope.flatten(1).square().sum(1)


def two_passes(model: nn.Module, batch: Any) -> Tensor:
    first, second = model(batch[0]), model(batch[0][:, :3])
    return F.cross_entropy(first, batch[1], reduction="none") + (first - second).square().mean(1)


def own_teacher(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        teacher = model(batch[0].flip(1))
    student = model(batch[0])
    return cross_entropy(lambda _: student, batch) + (student - teacher).square().mean(1)


class Trimmed(nn.Module):
    """Positions that no example of the batch needs are cut off first, as collators do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        longest = int((x > 2).sum(1).max())
        mask = (torch.arange(x.shape[1]) < (x > 2).sum(1, keepdim=True))[:, :longest, None]
        x = torch.tanh(self.first(self.embedding(x[:, :longest]))) * mask
        return self.head(x.sum(1))


def compiled_part() -> nn.Module:
    inner: Any = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), backend="eager")
    return nn.Sequential(nn.Linear(6, 6), inner, nn.Linear(6, CLASSES))


def compiled_in_place() -> nn.Module:
    model = smooth()
    model.compile(backend="eager")
    return model


def pooled() -> nn.Module:
    return Shaped(lambda m, x: m(x).mean(1))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


ODD = [
    odd("frames", lambda: Frames(False), videos),
    odd("frames, places first", lambda: Frames(True), videos),
    odd("film", Conditional),
    odd("learned queries", Queries, sequences()),
    odd("first state", FirstState, sequences()),
    odd("ensemble", Ensemble),
    odd("standardised weights", standardised, images()),
    odd("hyper network", Hyper),
    odd("pruned", pruned),
    odd("orthogonal", orthogonal),
    odd("user's hooks", hooked),
    odd("penalty of weights", smooth, loss=with_penalty),
    odd("losses in float64", smooth, loss=batch_dependent_weights),
    odd("two forward passes", pooled, sequences(), two_passes),
    odd("a teacher of its own", pooled, sequences(), own_teacher),
    odd("trimmed to the longest", Trimmed, tokens()),
    odd("compiled part", compiled_part),
    odd("compiled in place", compiled_in_place),
    odd("gradient penalty", smooth, loss=gradient_penalty),
]
