"""What some models do to their own weights in `forward`."""

from __future__ import annotations

import torch
from torch import nn


def clamp_data(weight: nn.Parameter) -> None:
    """Clip it, past autograd."""
    weight.data.clamp_(-0.1, 0.1)


def clamp_without_grad(weight: nn.Parameter) -> None:
    """Clip it, as torch says it."""
    with torch.no_grad():
        weight.clamp_(-0.1, 0.1)


def rebind(weight: nn.Parameter) -> None:
    """Give it other memory, with rows of length 1."""
    weight.data = weight.data / weight.data.norm(dim=1, keepdim=True)


def drift(weight: nn.Parameter) -> None:
    """Change it a little in each run."""
    weight.data.mul_(0.999)
