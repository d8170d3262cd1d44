"""Per-example gradients by one backward pass per example: slow, but as general as training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import Node

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.exchange import exchanged
from sage_torch.gradients.loss import ExampleLoss, check_recorded, differentiable, ordinary

__all__ = ["LoopGradients", "grads_kept", "other_leaves", "own_leaf"]


class LoopGradients:
    """Gradients `g_i = dL_i/dw`, one example after another, with respect to named parameters.

    `FunctionalGradients` uses it for models that vmap cannot differentiate.

    Args:
        losses: Model and loss.
        names: Names of the parameters w of the model, in column order.

    Cost:
        n forward and backward passes of batch size one; one wait for the device per batch.
    """

    def __init__(self, losses: ExampleLoss, names: Sequence[str]) -> None:
        self._losses = losses
        self._names = list(names)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the gradients of a batch.

        Args:
            batch: n examples, on the model's device.

        Returns:
            Tensor (n, D) float32 on the model's device, detached.

        Raises:
            ValueError, SageError: As `ExampleLoss` says.
        """
        n = batches.length(batch)
        chosen = self._losses.named(self._names)
        dim = sum(parameter.numel() for parameter in chosen)
        with differentiable():
            rows = torch.zeros((n, dim), dtype=torch.float32, device=chosen[0].device)
            batch = ordinary(batch)
            losses = [self._fill(rows[i], batches.take(batch, i, i + 1)) for i in range(n)]
            self._losses.check(torch.cat(losses), batch)
        return rows

    def _fill(self, row: Tensor, example: Batch) -> Tensor:
        """Write the gradient of one example, and return its loss (1,).

        Each example gets the user's weights and fresh buffers, so that it cannot write to those of
        the next.
        """
        with self._losses.exchangeable(self._names) as parameters:
            # All trained parameters are recorded, even those that are not chosen: reentrant
            # checkpointing skips a block if its input does not require grad.
            for parameter in self._losses.parameters():
                if parameter.requires_grad:
                    parameters[id(parameter)].requires_grad_()
            leaves = [
                parameters[id(parameter)].requires_grad_()
                for parameter in self._losses.named(self._names)
            ]
            example = batches.map_tensors(example, own_leaf)
            with exchanged(self._losses, {**parameters, **self._losses.copied_buffers()}):
                loss, gradients = _differentiate(self._losses, example, leaves)
            _write(row, leaves, gradients)
        return loss


def _differentiate(
    losses: ExampleLoss, example: Batch, leaves: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss of an example and its gradients, while the parameters are exchanged.

    The backward pass must come before they are put back, because activation checkpointing runs the
    model again during it. It is `.backward()` because under reentrant checkpointing `autograd.grad`
    raises an error or silently returns nothing.
    """
    loss = check_recorded(losses(example)).sum()
    for leaf in leaves:
        leaf.grad = None
    with grads_kept(other_leaves(loss, leaves)):
        torch.autograd.backward(loss)
    return loss.detach().reshape(1), [leaf.grad for leaf in leaves]


def other_leaves(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the leaves of the graph of a loss without `leaves`: inputs, and those of the loss."""
    ours = {id(leaf) for leaf in leaves}
    others: dict[int, Tensor] = {}
    seen: set[Node] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
        if node.name().endswith("AccumulateGrad"):
            variable: Tensor = node.variable  # type: ignore[attr-defined]
            if id(variable) not in ours:
                others[id(variable)] = variable
    return list(others.values())


@contextmanager
def grads_kept(others: Sequence[Tensor]) -> Iterator[None]:
    """Restore the `.grad` of tensors on exit."""
    before = [tensor.grad for tensor in others]
    for tensor in others:
        tensor.grad = None  # a backward pass would add to the old gradient in place
    try:
        yield
    finally:
        for tensor, gradient in zip(others, before, strict=True):
            tensor.grad = gradient


def own_leaf(tensor: Tensor) -> Tensor:
    """Return an input that requires grad as a new leaf, which then receives its gradient."""
    return tensor.detach().requires_grad_() if tensor.requires_grad else tensor


def _write(row: Tensor, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    column = 0
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
            row[column : column + leaf.numel()] = dense.detach().reshape(-1)
        column += leaf.numel()
