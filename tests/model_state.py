"""What a selection must leave alone, and a training step after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

N, CLASSES = 24, 3
KINDS = ["functional", "projected", "last_layer"]
kinds = pytest.mark.parametrize("kind", KINDS)


def vectors() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(N, 6, generator=generator), torch.arange(N) % CLASSES)


def registered(model: nn.Module) -> list[Any]:
    """Return every place of every parameter and buffer, with what stands there."""
    return [
        (where, name, id(tensor), None if tensor is None else tensor.data_ptr())
        for where, module in model.named_modules(remove_duplicate=False)
        for entries in (module._parameters, module._buffers)
        for name, tensor in entries.items()
    ]


def bits(model: nn.Module) -> list[bytes]:
    tensors = (*model.parameters(), *model.buffers())
    return [tensor.detach().contiguous().numpy().tobytes() for tensor in tensors]


def step(model: nn.Module, data: TensorDataset) -> list[bytes]:
    """Take a training step; return the bits of all weights."""
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    inputs, targets = data.tensors
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    return bits(model)
