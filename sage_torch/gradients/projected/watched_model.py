"""Runs of a model: two that observe its use of parameters, then those that fill rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.loop import grads_kept, other_leaves, own_leaf
from sage_torch.gradients.loss import ExampleLoss, differentiable, ordinary
from sage_torch.gradients.projected.elementwise import by_vmap
from sage_torch.gradients.projected.layers import RULES
from sage_torch.gradients.projected.maps import Block
from sage_torch.gradients.projected.recorder import Recorder, Uses
from sage_torch.gradients.projected.uses import Observer, backward

__all__ = ["WatchedModel"]


class WatchedModel:
    """Runs a model and its loss, and sees each use of their parameters.

    Args:
        losses: Model and loss.
    """

    def __init__(self, losses: ExampleLoss) -> None:
        self._losses = losses
        self.dtypes: set[torch.dtype] = set()  # those of the model's results, once observed
        self._passes = _ForwardAndBackward(losses)

    def observe(self, some: Batch, blocks: Sequence[Block]) -> Uses:
        """Return every use of these parameters, as seen in runs with 2 and with 3 examples.

        Args:
            some: At least one example; they are repeated if there are fewer than 3.
            blocks: The parameters.

        Raises:
            UnstableModelError: The run with 3 examples calls other functions than that with 2.
        """
        observer: Observer | None = None
        for count in (2, 3):
            with differentiable():
                part = batches.places(batches.map_tensors(ordinary(some), own_leaf), range(count))
                state = self._state()
                names = {id(state[f"model.{b.name}"].requires_grad_()): b.name for b in blocks}
                observer = Observer(names, observer)
                with observer:
                    functional_call(self._losses, state, (part,))
        assert observer is not None  # there are two rounds
        self.dtypes |= observer.dtypes
        return observer.uses

    def fill(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> bool:
        """Fill the columns of these parameters with projected gradients.

        Args:
            rows: Tensor (n, d) of zeros.
            batch: n examples.
            blocks: The parameters.
            uses: The result of `observe`.

        Returns:
            Whether the losses depend on the parameters.

        Raises:
            UnsupportedUseError: A use of the parameters has no rule.
            ValueError, SageError: As `ExampleLoss`.
        """
        return self._fill(rows, batch, blocks, uses).is_backward

    def measure(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> int:
        """Call `fill`, and return the bytes held between the forward and the backward pass."""
        self._passes.saved = saved = _SavedBytes(self._losses)
        try:
            return self._fill(rows, batch, blocks, uses).kept_bytes + saved.bytes
        finally:
            self._passes.saved = None

    def _fill(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> Recorder:
        with differentiable():
            # Copies, because a model may write to its inputs and the batch may be run again.
            batch = batches.map_tensors(ordinary(batch), lambda t: own_leaf(t).clone())
            state = self._state()
            parameters = [(state[f"model.{block.name}"], block) for block in blocks]
            recorder = Recorder(parameters, rows, uses, RULES, by_vmap)
            state = {f"losses.{name}": tensor for name, tensor in state.items()}
            with recorder:
                losses = functional_call(self._passes, state, (batch, recorder))
        self._losses.check(losses, batch)
        return recorder

    def _state(self) -> dict[str, Tensor]:
        return {**self._losses.detached_parameters(), **self._losses.copied_buffers()}


class _ForwardAndBackward(nn.Module):
    """Losses and their backward pass while functional_call has the parameters exchanged.

    The backward pass is inside because activation checkpointing runs the model again during it, and
    must then find the exchanged parameters.
    """

    def __init__(self, losses: ExampleLoss) -> None:
        super().__init__()
        self.losses = losses
        self.saved: _SavedBytes | None = None  # counts bytes in the forward pass, if set

    def forward(self, batch: Batch, recorder: Recorder) -> Tensor:
        with self.saved or nullcontext():
            losses: Tensor = self.losses(batch)
        if losses.requires_grad:
            total = losses.sum()
            recorder.is_backward = True
            with grads_kept(other_leaves(total, [])):
                backward(total)
        return losses.detach()


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the memory that a graph holds for its backward pass, without parameters."""

    def __init__(self, losses: ExampleLoss) -> None:
        self.bytes = 0
        self._known = {p.untyped_storage().data_ptr() for p in losses.parameters()}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor
