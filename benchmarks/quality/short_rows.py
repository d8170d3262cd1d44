"""The ways to short gradients that `compression.py` compares with the exact ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from sage_torch import CountSketch, gradients

BATCH = 128
PLAIN, EXACT = "forward + backward", "exact"
Rows = Callable[[tuple[Tensor, Tensor]], Tensor]


@dataclass(frozen=True)
class Contender:
    """How rows are made: of a batch, or of the exact rows of that batch."""

    dim: int
    of_batch: Rows | None = None
    of_exact: Callable[[Tensor], Tensor] | None = None


def contenders(
    network: nn.Module, widths: list[int], lengths: list[int], first: Any, seed: int
) -> dict[str, Contender]:
    """Return every way to rows by name, the exact one first; each has seen one batch."""
    exact = gradients.FunctionalGradients(network)
    last_layer = gradients.LastLayerGradients(network)
    found = {EXACT: Contender(exact.dim, exact)}
    exact(first)
    for width in widths:
        computer = gradients.ProjectedGradients(network, width=width, seed=seed)
        computer(first)
        found[f"projected, width {width}"] = Contender(computer.dim, computer)
    for length in lengths:
        sketch = CountSketch(exact.dim, length, seed)
        found[f"count sketch to {length:,}"] = Contender(length, of_exact=sketch)
    last_layer(first)
    found["last layer"] = Contender(last_layer.dim, last_layer)
    return found


def all_rows(
    network: nn.Module, data: TensorDataset, ways: dict[str, Contender]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the rows (N, d) of each way, and its seconds per example; a batch at a time."""
    images, labels = data.tensors
    rows = {name: torch.empty(len(images), way.dim) for name, way in ways.items()}
    seconds = dict.fromkeys([PLAIN, *ways], 0.0)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        batch = images[part], labels[part]
        begin = time.perf_counter()
        network.zero_grad(set_to_none=True)
        cross_entropy(network(batch[0]), batch[1]).backward()
        seconds[PLAIN] += time.perf_counter() - begin
        exact = torch.empty(0)
        for name, way in ways.items():
            begin = time.perf_counter()
            if way.of_batch is not None:
                found = way.of_batch(batch)
            else:
                assert way.of_exact is not None
                found = way.of_exact(exact)
            seconds[name] += time.perf_counter() - begin
            rows[name][part] = found
            exact = found if name == EXACT else exact
    network.zero_grad(set_to_none=True)
    for name, way in ways.items():
        if way.of_exact is not None:
            seconds[name] += seconds[EXACT]
    return rows, {name: value / len(images) for name, value in seconds.items()}
