"""The targets of rules: the columns of a parameter, or a tensor made of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sage_torch.gradients.projected.maps import Block, SideMap, matrix_form, project

__all__ = ["DerivedTarget", "ParameterTarget", "Target", "add_whole"]


class Target(Protocol):
    """A parameter or a tensor made of parameters, to which a rule adds gradients."""

    left: SideMap
    right: SideMap
    shape: tuple[int, ...]

    def add_projected(self, values: Tensor) -> None:
        """Add gradients (n, left width, right width), both sides projected."""
        ...


class ParameterTarget:
    """A parameter, whose gradients go to its columns of the rows."""

    def __init__(self, block: Block, rows: Tensor) -> None:
        self.left, self.right, self.shape = block.left, block.right, block.shape
        self._columns = block.of(rows)

    def add_projected(self, values: Tensor) -> None:
        """Add to the columns."""
        self._columns += values


class DerivedTarget:
    """A tensor made of parameters alone, whose exact gradients autograd carries back to them.

    Args:
        tensor: The tensor, with its graph.
        leaves: The parameters in it, as tensors that require grad, and their targets.
    """

    def __init__(self, tensor: Tensor, leaves: Mapping[Tensor, ParameterTarget]) -> None:
        self.tensor, self.leaves = tensor, dict(leaves)
        self.shape = tuple(tensor.shape)
        rows, columns = matrix_form(self.shape)
        self.left, self.right = SideMap(rows, rows, 0, ""), SideMap(columns, columns, 0, "")

    def add_projected(self, values: Tensor) -> None:
        """Carry gradients back through the graph, for all examples at once."""
        with torch.enable_grad():
            found = torch.autograd.grad(
                self.tensor,
                list(self.leaves),
                values.reshape(len(values), *self.shape).to(self.tensor.dtype),
                is_grads_batched=True,
                retain_graph=True,
                allow_unused=True,
            )
        for target, gradients in zip(self.leaves.values(), found, strict=True):
            if gradients is not None:
                add_whole(target, gradients.detach().float())


def add_whole(target: Target, gradients: Tensor) -> None:
    """Project gradients (n, *shape) and add them."""
    target.add_projected(project(gradients, target.left, target.right))
