"""Layers whose rows are examples, positions and channels in any order, or no examples at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from zoo.bare import then_in_place, without_grad
from zoo.case import CLASSES, Case, N, sequences


class Shaped(nn.Module):
    """A Linear layer whose rows are examples, positions and channels in some order."""

    def __init__(self, apply: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.apply_ = nn.Linear(6, 6), nn.Linear(6, 6), apply
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.apply_(self.second, torch.tanh(self.first(x))))
        return self.head(x.mean(1) if x.ndim == 3 else x)


def _time_major_rows(layer: nn.Module, x: Tensor) -> Tensor:
    rows: Tensor = layer(x.transpose(0, 1).reshape(-1, 6))
    return rows.view(x.shape[1], len(x), 6).transpose(0, 1)


def _two_views(layer: nn.Module, x: Tensor) -> Tensor:
    a, b = layer(torch.cat([x, 2 * x])).chunk(2)
    return a * b  # type: ignore[no-any-return]


def _some_tokens(layer: nn.Module, x: Tensor) -> Tensor:
    chosen = x[..., 0] > 0
    out = x.clone()
    out[chosen] = layer(x[chosen])
    return out


def shaped(
    name: str, apply: Callable[[Any, Tensor], Tensor], functional: tuple[str, ...] | None = ()
) -> Case:
    return Case(name, lambda: Shaped(apply), sequences(), functional=functional)


def either(name: str, apply: Callable[[Any, Tensor], Tensor]) -> Case:
    """Return a case that may be handled in either way, by a rule or by the fallback."""
    return shaped(name, apply, None)


USUAL = [
    shaped("flattened positions", lambda m, x: m(x.reshape(-1, 6)).view(x.shape)),
    shaped("time first", lambda m, x: m(x.transpose(0, 1)).transpose(0, 1)),
    shaped("time first, flattened", _time_major_rows, ("second.*",)),
    shaped("two views in one batch", _two_views, ("second.*",)),
    shaped("some tokens", _some_tokens, ("second.*",)),
    shaped("input of no example", lambda m, x: x + m(torch.eye(6).repeat(2, 1)[:N])),
    shaped("input of one row", lambda m, x: x * m(torch.ones(6))),
    shaped("input of one batch row", lambda m, x: x * m(torch.ones(1, 6))),
    shaped("one module three times", lambda m, x: m(torch.tanh(m(x)) + m(x[:, :1]))),
    shaped("output used twice", lambda m, x: (lambda y: y.sigmoid() * y)(m(x))),
    shaped("output partly used", lambda m, x: m(x)[:, ::2] + m(x).detach()[:, :1]),
    shaped("some positions only", lambda m, x: torch.cat([m(x[:, :3]), x[:, 3:]], 1)),
]


def _both_ways(layer: nn.Module, x: Tensor) -> Tensor:
    """One layer in two checkpoints, whose backward passes come in the other order."""
    x = checkpoint(lambda y: torch.tanh(layer(y)), x, use_reentrant=True)
    flipped = x.transpose(0, 1)
    return checkpoint(lambda y: torch.tanh(layer(y)), flipped, use_reentrant=True).transpose(0, 1)


def _packed(layer: nn.Module, x: Tensor) -> Tensor:
    lengths = torch.full((len(x),), x.shape[1])
    packed = pack_padded_sequence(x, lengths, batch_first=True)
    packed = PackedSequence(layer(packed.data), packed.batch_sizes)
    return pad_packed_sequence(packed, batch_first=True)[0]


def _packed_unevenly(layer: nn.Module, x: Tensor) -> Tensor:
    lengths = 1 + (x[:, 0] > 0).sum(1)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed = packed._replace(data=layer(packed.data))
    return pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]


def _input_gradient(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x if x.requires_grad else x.requires_grad_()
        energy = torch.tanh(layer(x)).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


def _with_other_parameters(layer: nn.Module, x: Tensor) -> Tensor:
    noisy = {name: p * 1.1 for name, p in layer.named_parameters()}
    return functional_call(layer, noisy, (x,)) + layer(x)


def _examples_sorted(layer: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0, 0].argsort()
    return layer(x[order])[order.argsort()]  # type: ignore[no-any-return]


def _examples_doubled(layer: nn.Module, x: Tensor) -> Tensor:
    rows = layer(x.repeat_interleave(2, 0))
    return rows[::2] * rows[1::2]  # type: ignore[no-any-return]


ODD = [
    either("packed", _packed),
    either("packed unevenly", _packed_unevenly),
    either("gradient of the input", _input_gradient),
    either("functional_call", _with_other_parameters),
    either("checkpoints of one layer", _both_ways),
    either("layer, then in place", lambda m, x: then_in_place(m(x))),
    either("layer, then itself in place", lambda m, x: F.relu_(m(x))),
    either("layer of the input, then in place", lambda m, x: then_in_place(m(x.detach()))),
    either("under no_grad", lambda m, x: x + without_grad(lambda: m(x))),
    either("positions reversed in rows", lambda m, x: m(x.flip(1).reshape(-1, 6)).view(x.shape)),
    either("examples reversed", lambda m, x: m(x.flip(0)).flip(0)),
    either("examples sorted", _examples_sorted),
    either("examples doubled", _examples_doubled),
    either("examples twice", lambda m, x: torch.stack(m(x.repeat(2, 1, 1)).chunk(2)).prod(0)),
    either("example by example", lambda m, x: torch.stack([m(row) for row in x])),
    either("vmap over examples", lambda m, x: vmap(m)(x)),
    either("chunks of examples", lambda m, x: torch.cat([m(part) for part in x.split(3)])),
    either("one module over slices", lambda m, x: torch.stack([m(x[:, 0]), m(x[:, 1])], 1)),
]

INPUTS = [*USUAL, *ODD]
